// Fine-tuning: a LoRA adapter over a frozen model, or a whole model, in the words of transformers' Trainer and TRL's
// SFTTrainer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/adapter.h"
#include "nibble/model.h"
#include "nibble/seq2seq.h"
#include "nibble/tokenizer.h"

namespace nibble {
namespace api {
struct LoadedModel;
}

/// How lines of text become samples.
struct DatasetOptions {
  int64_t max_length = 1024;  // tokens of a sample; longer ones are cut, or dropped
  bool drop_long = false;
  std::optional<bool> completion_only_loss{};  // loss on completions and assistant turns alone; nullopt: for
                                               // prompt/completion samples only
  /// For an encoder-decoder: prompts become sources, and completions targets after this id.
  std::optional<int32_t> decoder_start_token_id{};
};

/// Tokenized samples.
class Dataset {
 public:
  struct Sample {
    std::vector<int32_t> ids;
    std::vector<bool> is_target;       // whether the token is to be predicted; never the first
    std::vector<int32_t> source = {};  // what the encoder reads, if there is one
  };

  /// One JSON object a line: {"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [{"role", "content"},
  /// ...]} (the tokenizer's chat template); prompt and completion may be such lists, too. Texts and completions that
  /// are texts end in the end-of-text token. Errors: not_found; corrupt_file naming the line; invalid_argument if no
  /// sample is left.
  static Dataset from_jsonl(const std::filesystem::path& path, const AutoTokenizer& tokenizer,
                            const DatasetOptions& options = {});

  std::vector<Sample> samples;
  int64_t shortened = 0;  // samples that were cut
  int64_t dropped = 0;    // samples that were left out: too long, or with nothing to predict

  int64_t token_count() const;
};

/// Field names and defaults as transformers' TrainingArguments, where it has them.
struct TrainingArguments {
  std::filesystem::path output_dir{};
  double num_train_epochs = 3;
  int64_t max_steps = -1;  // > 0: goes before num_train_epochs
  int64_t per_device_train_batch_size = 8;
  int64_t gradient_accumulation_steps = 1;
  double learning_rate = 5e-5;
  std::string lr_scheduler_type = "linear";
  int64_t warmup_steps = 0;
  double warmup_ratio = 0;            // of all steps, if warmup_steps is 0
  double max_grad_norm = 1;           // 0: no clipping
  double weight_decay = 0;            // not of biases and norms
  std::string optim = "adamw_torch";  // any of optim_names()
  /// nullopt: 0.9, 0.999, 1e-8; for optimizers without them an error.
  std::optional<double> adam_beta1{}, adam_beta2{}, adam_epsilon{};
  bool gradient_checkpointing = false;
  bool activation_offloading = false;  // with checkpointing on a GPU: layers' inputs wait in main memory
  bool packing = false;  // rows of up to max_length tokens from several samples, which do not see each other
  int64_t packing_length = 1024;
  int64_t logging_steps = 10;
  int64_t eval_steps = 0;               // 0: at the end alone; else needs data to evaluate on
  int64_t early_stopping_patience = 0;  // > 0: stop after so many evaluations (of eval_steps) without a better loss;
                                        // keep the best
  int64_t save_steps = 500;             // 0: no checkpoints
  int64_t save_total_limit = 0;         // > 0: so many checkpoints at most, the newest
  std::string report_to = "none";       // or "tensorboard": event files in output_dir/runs
  uint64_t seed = 42;
  std::optional<std::filesystem::path> resume_from_checkpoint{};  // a checkpoint, or output_dir: its newest

  /// Errors: invalid_argument naming the field, what was found and what was expected; such as an output_dir that holds
  /// files already, without resume_from_checkpoint.
  void validate() const;
};

/// What is known after a step, or an evaluation.
struct TrainingProgress {
  int64_t step = 0, total_steps = 0;
  double epoch = 0;
  double loss = 0;  // mean over the targets since the last report; for on_step, of the step
  double learning_rate = 0;
  double grad_norm = 0;
  double tokens_per_second = 0;
  int64_t peak_memory_bytes = 0;
  std::optional<double> eval_loss{};
};

struct TrainingReport {
  int64_t steps = 0;
  double final_loss = 0;  // of the last step
  std::optional<double> eval_loss{};
  double tokens_per_second = 0;
  int64_t trained_tokens = 0;
  int64_t peak_memory_bytes = 0;
  bool stopped_early = false;
  std::string trainable_parameters;  // as PEFT's print_trainable_parameters
};

/// Trains an adapter and writes it, as PEFT does, into output_dir, with checkpoints beside it from which a run goes on
/// bit for bit. The base model's weights, quantized or not, stay as they are; afterwards the adapter is applied to it
/// under `adapter_name`. Several trainers may train adapters over one model, each from the base alone;
/// model.set_adapter switches between them. With init_lora_weights "pissa" or "olora" the adapter in output_dir has
/// twice the rank, so that it fits the base as it is; over quantized weights it has its own rank and fits
/// output_dir/residual_model, a checkpoint. Without a LoraConfig every parameter is trained, in float32, and output_dir
/// becomes a model of the base's type; the model in memory then has the new weights under that name.
/// Same arguments, same bits. Errors: invalid_argument (options; an output_dir with another run's state), unsupported
/// (the architecture; full training of quantized weights), internal naming the step at which loss or gradient was not
/// finite (the last checkpoint is kept), cancelled (after a checkpoint of the last step, whatever save_steps says), io.
class Trainer {
 public:
  Trainer(AutoModelForCausalLM& model, std::optional<LoraConfig> lora, TrainingArguments arguments, Dataset train,
          std::optional<Dataset> evaluation = std::nullopt, std::string adapter_name = "default");
  /// An encoder-decoder: every sample has a source, and a target that starts with decoder_start_token_id().
  Trainer(AutoModelForSeq2SeqLM& model, std::optional<LoraConfig> lora, TrainingArguments arguments, Dataset train,
          std::optional<Dataset> evaluation = std::nullopt, std::string adapter_name = "default");
  /// `on_progress` hears every logging_steps, and of evaluations; `on_step` after each step, of that step's loss.
  TrainingReport train(const std::function<void(const TrainingProgress&)>& on_progress = {},
                       const std::function<void(const TrainingProgress&)>& on_step = {});

 private:
  Trainer(api::LoadedModel& model, std::optional<LoraConfig> lora, TrainingArguments arguments, Dataset train,
          std::optional<Dataset> evaluation, std::string adapter_name);

  api::LoadedModel& model_;
  std::optional<LoraConfig> lora_;
  TrainingArguments arguments_;
  Dataset train_;
  std::optional<Dataset> evaluation_;
  std::string adapter_name_;
};

/// The mean loss over the targets of `dataset`, by the model with the adapter that is applied.
double evaluate(AutoModelForCausalLM& model, const Dataset& dataset);
double evaluate(AutoModelForSeq2SeqLM& model, const Dataset& dataset);

}  // namespace nibble
