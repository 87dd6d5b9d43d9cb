// Memory planning without loading anything: what weights, cache and activations need, and what fits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "nibble/adapter.h"
#include "nibble/model.h"

namespace nibble {

struct PlanOptions {
  BitsAndBytesConfig quantization_config{};
  std::optional<DType> dtype{};
  int64_t context = 2048;
  int64_t batch_size = 1;
  std::optional<int64_t> memory_bytes{};  // what it must fit, e.g. of --vram; nullopt: this machine's free memory
};

struct PlanRow {
  std::string level;  // "float16", "LLM.int8()", "nf4", "nf4 + double quantization"
  int64_t weights_bytes = 0;
  int64_t total_bytes = 0;
  bool fits = false;
};

struct Plan {
  int64_t weights_bytes = 0;  // with statistics
  int64_t kv_cache_bytes = 0;
  int64_t activation_bytes = 0;
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;
  bool fits = false;
  std::vector<PlanRow> levels;  // the same model at every level
};

/// From a model's config.json.
Plan plan(const std::filesystem::path& model, const PlanOptions& options = {});

/// From a parameter count alone: a Llama shape of that size is assumed.
Plan plan(int64_t parameters, const PlanOptions& options = {});

/// A fine-tuning run: LoRA over a frozen model, as Trainer does it.
struct TrainingPlanOptions {
  BitsAndBytesConfig quantization_config{};
  std::optional<DType> dtype{};
  LoraConfig lora{.target_modules = "all-linear"};
  std::string optim = "adamw_torch";
  int64_t max_length = 1024;  // tokens of each sample
  int64_t per_device_train_batch_size = 8;
  bool gradient_checkpointing = false;
  bool activation_offloading = false;  // with checkpointing on a GPU
  bool is_gpu = false;
  bool has_bf16 = true;  // of the GPU, from compute capability 8.0 on: activations in bf16 instead of fp32
  std::optional<int64_t> memory_bytes{};  // what it must fit; nullopt: this machine's free memory
};

/// A change of the options, and what comes of it.
struct TrainingPlanWay {
  std::string change;  // "--gradient-checkpointing"
  int64_t total_bytes = 0;
  bool fits = false;
};

/// Peak memory of a run, by what takes it. Trainer keeps these sizes.
struct TrainingPlan {
  int64_t weights_bytes = 0;    // with statistics
  int64_t adapter_bytes = 0;    // fp32
  int64_t gradient_bytes = 0;   // of the adapter
  int64_t optimizer_bytes = 0;  // states; a paged optimizer's pages alone, on a GPU
  int64_t host_bytes = 0;       // in main memory beside a GPU: a paged optimizer's states, offloaded activations
  int64_t kept_bytes = 0;       // activations that wait for the way back
  int64_t working_bytes = 0;    // at the worst moment: one layer with its gradients, or a chunk of logits
  int64_t workspace_bytes = 0;  // of kernels and the GPU's runtime; on a CPU, of the program itself
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;
  bool fits = false;
  std::vector<TrainingPlanWay> ways;  // to less memory, one change each; last, all of them

  int64_t activation_bytes() const { return kept_bytes + working_bytes; }
};

/// From a model's config.json. Errors: not_found (a target, an optimizer), invalid_argument.
TrainingPlan plan_training(const std::filesystem::path& model, const TrainingPlanOptions& options = {});

/// From a parameter count alone: a Llama shape of that size is assumed.
TrainingPlan plan_training(int64_t parameters, const TrainingPlanOptions& options = {});

}  // namespace nibble
