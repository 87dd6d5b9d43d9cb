// Sizes of every module under a quantization plan.
#include "models/summary.h"

#include "base/checked.h"
#include "models/module_tree.h"
#include "models/registry.h"
#include "quant/format.h"

namespace nibble::models {
namespace {

/// Fills in the bytes and counts of one parameter.
struct Counter {
  const QuantizationPlan& plan;
  DType dtype;
  ModelSummary& summary;

  void add_quantized(ModuleInfo& info, const Shape& shape) const {
    const int64_t count = checked_count(shape, "parameter");
    info.is_quantized = true;
    if (plan.config.load_in_8bit) {
      info.dtype = "int8";
      add(info, count, count);
      summary.statistics_bytes += shape[0] * size_of(DType::f32);
      return;
    }
    info.dtype = name_of(plan.config.bnb_4bit_quant_storage);
    const int64_t bytes = quant::packed_size_bytes(count);
    add(info, 2 * bytes, bytes);  // transformers counts two for each packed byte
    const int64_t blocks = quant::block_count(count, plan.config.bnb_4bit_blocksize);
    summary.statistics_bytes += plan.config.bnb_4bit_use_double_quant
                                    ? blocks + quant::block_count(blocks, quant::kNestedBlock) * 4
                                    : blocks * 4;
  }

  void add(ModuleInfo& info, int64_t count, int64_t bytes) const {
    info.parameters += count;
    info.size_bytes += bytes;
    summary.num_parameters += count;
    summary.memory_footprint_bytes += bytes;
  }
};

std::string class_name(const QuantizationPlan& plan, const std::string& path, const ModuleSpec& module) {
  if (!plan.is_quantized(path)) return module.class_name;
  return plan.config.load_in_8bit ? "Linear8bitLt" : "Linear4bit";
}

}  // namespace

ModelSummary summarize(const ModelSpec& spec, const QuantizationPlan& plan, DType dtype) {
  ModelSummary summary;
  summary.skipped_modules = plan.skipped;
  summary.max_position_embeddings = spec.max_position_embeddings;
  summary.tree = print_tree(
      spec, [&](const std::string& path, const ModuleSpec& module) { return class_name(plan, path, module); });
  const Counter counter{plan, dtype, summary};
  for_each_module(spec, [&](const std::string& path, const ModuleSpec& module) {
    ModuleInfo info;
    info.name = path;
    info.class_name = class_name(plan, path, module);
    const DType own_dtype = parameter_dtype(spec, path, dtype);
    info.repr = module.children.empty() ? leaf_repr(module, info.class_name) : info.class_name;
    for (const ParameterSpec& parameter : module.parameters) {
      const std::string name = join(path, parameter.name);
      if (parameter.name == "weight" && plan.is_quantized(path)) {
        counter.add_quantized(info, weight_shape(module));
        continue;
      }
      if (info.dtype.empty()) info.dtype = name_of(own_dtype);
      if (resolve_tied(spec, name) != name) continue;
      const int64_t count = checked_count(parameter.shape, name);
      counter.add(info, count, checked_mul(count, size_of(own_dtype), name));
    }
    // Of an embedding only a row is read, unless the head shares it and reads it whole; of an encoder nothing.
    const bool is_head = resolve_tied(spec, spec.head + ".weight") == path + ".weight";
    const bool is_encoder = spec.encoder && path.starts_with(spec.encoder->layers_prefix);
    if ((module.kind != ModuleKind::embedding || is_head) && !is_encoder) summary.decode_bytes += info.size_bytes;
    for (const BufferSpec& buffer : module.buffers) {
      const int64_t bytes = buffer.count * size_of(buffer.dtype.value_or(dtype));
      info.size_bytes += bytes;
      summary.memory_footprint_bytes += bytes;
    }
    summary.modules.push_back(std::move(info));
  });
  summary.decode_bytes += summary.statistics_bytes;
  return summary;
}

ModelSummary summarize(const Json& config, std::string_view source, const BitsAndBytesConfig& quantization,
                       std::optional<DType> dtype) {
  const ModelSpec spec = build_spec(config, source);
  const auto stored = read_quantization_config(config, source);
  const QuantizationPlan plan = plan_quantization(spec, stored ? *stored : quantization);
  if (!dtype) dtype = config_dtype(config, source);
  return summarize(spec, plan, dtype.value_or(DType::f32));
}

}  // namespace nibble::models
