// Memory planning without loading anything: what weights, cache and activations need, and what fits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

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

}  // namespace nibble
