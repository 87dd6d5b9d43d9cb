// What TrainingArguments may hold.
#include <cmath>

#include "base/error.h"
#include "nibble/optim.h"
#include "nibble/train.h"
#include "optim/family.h"

namespace nibble {

void TrainingArguments::validate() const {
  require(!output_dir.empty(), "output_dir: found nothing, expected a directory");
  std::error_code error;
  const bool is_there = std::filesystem::exists(output_dir, error);
  require(!is_there || std::filesystem::is_directory(output_dir, error), "output_dir: '{}' is no directory",
          output_dir.string());
  require(!is_there || resume_from_checkpoint || std::filesystem::is_empty(output_dir, error),
          "output_dir: '{}' holds files already; expected a new directory, or resume_from_checkpoint",
          output_dir.string());
  require(max_steps > 0 || (std::isfinite(num_train_epochs) && num_train_epochs > 0),
          "num_train_epochs: found {}, expected a positive number", num_train_epochs);
  require(per_device_train_batch_size >= 1, "per_device_train_batch_size: found {}, expected at least 1",
          per_device_train_batch_size);
  require(gradient_accumulation_steps >= 1, "gradient_accumulation_steps: found {}, expected at least 1",
          gradient_accumulation_steps);
  constexpr int64_t kMostRows = int64_t{1} << 31;
  require(
      per_device_train_batch_size <= kMostRows / gradient_accumulation_steps,
      "per_device_train_batch_size: found {} times gradient_accumulation_steps {}, expected at most {} samples a step",
      per_device_train_batch_size, gradient_accumulation_steps, kMostRows);
  require(std::isfinite(learning_rate) && learning_rate > 0, "learning_rate: found {}, expected a positive number",
          learning_rate);
  optim::class_of_optim(optim);
  LearningRateSchedule{.type = lr_scheduler_type}.validate();
  require(max_grad_norm >= 0, "max_grad_norm: found {}, expected 0 or more", max_grad_norm);
  require(weight_decay >= 0, "weight_decay: found {}, expected 0 or more", weight_decay);
  require(warmup_ratio >= 0 && warmup_ratio <= 1, "warmup_ratio: found {}, expected a number from 0 to 1",
          warmup_ratio);
  require(save_total_limit >= 0, "save_total_limit: found {}, expected 0 or more", save_total_limit);
  require(warmup_steps >= 0, "warmup_steps: found {}, expected 0 or more", warmup_steps);
  require(logging_steps >= 1, "logging_steps: found {}, expected at least 1", logging_steps);
  require(eval_steps >= 0, "eval_steps: found {}, expected 0 or more", eval_steps);
  require(save_steps >= 0, "save_steps: found {}, expected 0 or more", save_steps);
  require(early_stopping_patience >= 0, "early_stopping_patience: found {}, expected 0 or more",
          early_stopping_patience);
  require(early_stopping_patience == 0 || eval_steps > 0,
          "early_stopping_patience: found {} with eval_steps 0: it counts evaluations during the run",
          early_stopping_patience);
  require(!activation_offloading || gradient_checkpointing,
          "activation_offloading: found true without gradient_checkpointing, whose inputs of layers it moves");
  require(report_to == "none" || report_to == "tensorboard", "report_to: found '{}', expected none or tensorboard",
          report_to);
  require(!packing || packing_length >= 2, "packing_length: found {}, expected at least 2", packing_length);
}

}  // namespace nibble
