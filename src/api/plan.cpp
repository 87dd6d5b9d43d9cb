// include/nibble/plan.h: sizes from a config, real or assumed.
#include "nibble/plan.h"

#include <algorithm>
#include <cmath>

#include "api/placement.h"
#include "api/planned_model.h"
#include "base/checked.h"
#include "device/cpu.h"
#include "models/quantization.h"
#include "models/registry.h"
#include "models/summary.h"

namespace nibble {
namespace {

struct Sizes {
  int64_t weights = 0, cache = 0, activations = 0;
  int64_t total() const { return weights + cache + activations; }
};

/// Tokens of a prompt that one pass takes; longer prompts run in pieces.
constexpr int64_t kPrefillChunk = 512;

Sizes measure(const models::ModelSpec& spec, const BitsAndBytesConfig& config, DType dtype, const PlanOptions& options,
              int64_t chunk = kPrefillChunk) {
  const ModelSummary summary = models::summarize(spec, models::plan_quantization(spec, config), dtype);
  Sizes sizes;
  sizes.weights = checked_add(summary.memory_footprint_bytes, summary.statistics_bytes, "weights");
  const int64_t tokens = checked_mul(options.context, options.batch_size, "context x batch size");
  const int64_t element = dtype == DType::f32 ? 4 : 2;
  int64_t widest = spec.hidden_size;
  for (const auto& layer : spec.layers) {
    const auto& attention = layer.attention;
    // Of an encoder-decoder's source, as long as the target, cross-attention keeps as much.
    const int64_t kv_width = attention.kv_heads * attention.head_dim + layer.cross.kv_heads * layer.cross.head_dim;
    const int64_t per_token = 2 * kv_width * element;
    sizes.cache = checked_add(sizes.cache, checked_mul(tokens, per_token, "KV cache"), "KV cache");
    widest = std::max(
        {widest, 2 * layer.mlp.intermediate_size, (attention.heads + 2 * attention.kv_heads) * attention.head_dim});
  }
  const int64_t rows = std::max(std::min(options.context, chunk), options.batch_size);
  sizes.activations = checked_mul(rows, 4 * (3 * spec.hidden_size + 2 * widest), "activations") +
                      checked_mul(options.batch_size, 4 * spec.vocab_size, "logits");
  return sizes;
}

Plan plan_spec(const models::ModelSpec& spec, DType dtype, const PlanOptions& options, double scale) {
  const auto scaled = [&](Sizes sizes) {
    sizes.weights = std::llround(double(sizes.weights) * scale);
    return sizes;
  };
  const Sizes sizes = scaled(measure(spec, options.quantization_config, dtype, options));
  Plan result;
  result.weights_bytes = sizes.weights;
  result.kv_cache_bytes = sizes.cache;
  result.activation_bytes = sizes.activations;
  result.total_bytes = sizes.total();
  result.available_bytes = options.memory_bytes.value_or(device::describe_cpu().free_memory_bytes);
  result.fits = result.total_bytes <= result.available_bytes;
  const auto add = [&](const std::string& level, const BitsAndBytesConfig& config) {
    const Sizes row = scaled(measure(spec, config, dtype, options));
    result.levels.push_back({level, row.weights, row.total(), row.total() <= result.available_bytes});
  };
  add(std::string(name_of(dtype)), {});
  add("LLM.int8()", {.load_in_8bit = true});
  add("nf4", {.load_in_4bit = true, .bnb_4bit_quant_type = "nf4"});
  add("nf4 + double quant", {.load_in_4bit = true, .bnb_4bit_quant_type = "nf4", .bnb_4bit_use_double_quant = true});
  return result;
}

void check(const PlanOptions& options) {
  options.quantization_config.validate();
  require(options.context > 0, "context: found {}, expected a positive number", options.context);
  require(options.batch_size > 0, "batch_size: found {}, expected a positive number", options.batch_size);
}

}  // namespace

Plan plan(const std::filesystem::path& model, const PlanOptions& options) {
  check(options);
  const api::PlannedModel planned = api::planned_model(model, options.quantization_config, options.dtype);
  PlanOptions effective = options;
  effective.quantization_config = planned.quantization;
  return plan_spec(planned.spec, planned.dtype, effective, planned.scale);
}

int64_t api::needed_device_bytes(const ModelSource& source, const LoadOptions& options) {
  constexpr int64_t kContext = 4096, kGpuChunk = 2048;
  constexpr int64_t kReserve = int64_t{256} << 20;  // staging, scratch of kernels, what allocations round up
  const models::ModelSpec spec = models::build_spec(source.config, source.config_name);
  const auto stored = models::read_quantization_config(source.config, source.config_name);
  auto dtype = options.dtype ? options.dtype : models::config_dtype(source.config, source.config_name);
  const PlanOptions room{.context = std::min(kContext, spec.max_position_embeddings)};
  const BitsAndBytesConfig& config = stored ? *stored : options.quantization_config;
  return measure(spec, config, dtype.value_or(DType::f32), room, kGpuChunk).total() + kReserve;
}

Plan plan(int64_t parameters, const PlanOptions& options) {
  check(options);
  const api::PlannedModel planned = api::planned_model(parameters, options.quantization_config, options.dtype);
  return plan_spec(planned.spec, planned.dtype, options, planned.scale);
}

}  // namespace nibble
