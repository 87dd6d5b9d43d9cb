// Plans name every tensor first, since a safetensors header precedes the data; writers then stream in that order.
#include "models/convert_weights.h"

#include <algorithm>

#include "base/cancel.h"
#include "base/checked.h"
#include "base/error.h"
#include "models/module_tree.h"
#include "models/quantized_tensors.h"
#include "quant/format.h"
#include "tensor/convert.h"

namespace nibble::models {
namespace {

/// A parameter that goes into the file: tied ones only once, unless they are quantized apart from their twin.
struct Parameter {
  std::string module;
  std::string name;
  std::string file_module;  // the names to write under
  std::string file_name;
  Shape shape;  // (in, out) of a Conv1D
  bool is_linear_weight;
  bool is_transposed;
  DType dtype;  // if it is not quantized

  Shape quantized_shape() const { return is_transposed ? Shape{shape[1], shape[0]} : shape; }
};

std::vector<Parameter> stored_parameters(const ModelSpec& spec, const QuantizationPlan& plan, DType dtype) {
  std::vector<Parameter> result;
  for_each_module(spec, [&](const std::string& path, const ModuleSpec& module) {
    for (const ParameterSpec& parameter : module.parameters) {
      const std::string name = join(path, parameter.name);
      const bool is_linear_weight = module.kind == ModuleKind::linear && parameter.name == "weight";
      const bool is_twin = resolve_tied(spec, name) != name;
      if (is_twin && !(is_linear_weight && plan.is_quantized(path))) continue;
      const std::string file_name = stored_name(spec, name);
      result.push_back({path, name, file_name.substr(0, file_name.size() - parameter.name.size() - 1), file_name,
                        parameter.shape, is_linear_weight, is_linear_weight && module.is_transposed,
                        parameter_dtype(spec, path, dtype)});
    }
  });
  return result;
}

/// What the checkpoint holds of a parameter; a tied one under the name of the tensor it shares.
StoredWeight find_parameter(const Checkpoint& checkpoint, const ModelSpec& stored, const Parameter& parameter) {
  return find_stored(checkpoint, stored, resolve_tied(stored, parameter.name), parameter.shape,
                     parameter.is_transposed);
}

/// A stored weight as `dtype`, a linear layer's as (out, in).
Tensor plain_weight(const Checkpoint& checkpoint, const StoredWeight& found, const Parameter& parameter, DType dtype,
                    const ops::Backend& backend) {
  if (!found.is_quantized()) {
    const Tensor tensor = converted(checkpoint.get(found.name), dtype, backend.pool());
    return parameter.is_transposed ? tensor.transposed() : tensor;
  }
  const nn::Weight weight = weight_from_stored(found, {});
  if (const auto* packed = std::get_if<nn::Weight4Bit>(&weight))
    return backend.to_host(ops::dequantize_4bit(backend, packed->weight, dtype));
  return backend.to_host(ops::dequantize_int8(backend, std::get<nn::WeightInt8>(weight).weight, dtype));
}

/// The weight after `edits`, which always get memory of their own.
Tensor edited_weight(const Checkpoint& checkpoint, const StoredWeight& found, const Parameter& parameter, DType dtype,
                     const ops::Backend& backend, const ParameterEdits& edits) {
  const Tensor plain = plain_weight(checkpoint, found, parameter, DType::f32, backend);
  Tensor copy(DType::f32, plain.shape());
  std::copy_n(plain.as<float>(), plain.count(), copy.as<float>());
  edits.apply(parameter.name, copy);
  return copy.to(dtype);
}

void write_weight(const Parameter& parameter, const nn::Weight& weight, SafetensorsWriter& writer) {
  if (const auto* packed = std::get_if<nn::Weight4Bit>(&weight))
    write_4bit(parameter.file_name, packed->weight, state_json_room(packed->weight), writer);
  else
    write_int8(parameter.file_module, parameter.file_name, std::get<nn::WeightInt8>(weight).weight, writer);
}

}  // namespace

std::vector<PlannedTensor> plan_quantized(const ModelSpec& spec, const QuantizationPlan& plan, DType dtype) {
  std::vector<PlannedTensor> tensors;
  for (const Parameter& parameter : stored_parameters(spec, plan, dtype)) {
    if (!parameter.is_linear_weight || !plan.is_quantized(parameter.module)) {
      tensors.push_back({parameter.file_name, parameter.dtype, parameter.shape});
    } else if (plan.config.load_in_8bit) {
      plan_int8(parameter.file_module, parameter.file_name, parameter.quantized_shape(), tensors);
    } else {
      const ops::Tensor4Bit weight = blueprint(plan.config, parameter.quantized_shape(), dtype);
      plan_4bit(parameter.file_name, weight, state_json_room(weight), plan.config.bnb_4bit_quant_storage, tensors);
    }
  }
  return tensors;
}

int64_t write_quantized(const ModelSpec& spec, const Checkpoint& checkpoint, const QuantizationPlan& plan, DType dtype,
                        const ops::Backend& backend, SafetensorsWriter& writer, const Progress& progress) {
  const auto parameters = stored_parameters(spec, plan, dtype);
  Steps steps{progress, "quantizing", parameters.size()};
  int64_t quantized = 0;
  for (const Parameter& parameter : parameters) {
    steps.next();
    const bool wants_quantized = parameter.is_linear_weight && plan.is_quantized(parameter.module);
    const std::string& original = wants_quantized ? resolve_tied(spec, parameter.name) : parameter.name;
    const StoredWeight stored = find_stored(checkpoint, spec, original, parameter.shape, parameter.is_transposed);
    if (stored.is_quantized())
      fail(ErrorCode::invalid_argument, "tensor '{}' is quantized already; expected a plain checkpoint", stored.name);
    Tensor tensor = converted(checkpoint.get(stored.name), wants_quantized ? dtype : parameter.dtype, backend.pool());
    if (!wants_quantized) {
      writer.write(parameter.file_name, tensor.bytes());
    } else {
      if (parameter.is_transposed) tensor = tensor.transposed();
      write_weight(parameter, nn::to_host(backend, quantize_weight(backend, tensor, plan.config)), writer);
      ++quantized;
    }
    checkpoint.release(stored.name);
  }
  steps.finish();
  return quantized;
}

std::vector<PlannedTensor> plan_dequantized(const ModelSpec& spec, DType dtype) {
  std::vector<PlannedTensor> tensors;
  for (const Parameter& parameter : stored_parameters(spec, {}, dtype))
    tensors.push_back({parameter.file_name, parameter.dtype, parameter.shape});
  return tensors;
}

int64_t write_dequantized(const ModelSpec& spec, const ModelSpec& stored, const Checkpoint& checkpoint, DType dtype,
                          const ops::Backend& backend, SafetensorsWriter& writer, const Progress& progress,
                          const ParameterEdits* edits) {
  const auto parameters = stored_parameters(spec, {}, dtype);
  Steps steps{progress, edits ? "merging" : "dequantizing", parameters.size()};
  int64_t dequantized = 0;
  for (const Parameter& parameter : parameters) {
    steps.next();
    const StoredWeight found = find_parameter(checkpoint, stored, parameter);
    const DType target = found.is_quantized() ? dtype : parameter.dtype;
    Tensor tensor = edits && edits->has(parameter.name)
                        ? edited_weight(checkpoint, found, parameter, target, backend, *edits)
                        : plain_weight(checkpoint, found, parameter, target, backend);
    if (parameter.is_transposed) tensor = tensor.transposed();
    dequantized += found.is_quantized() ? 1 : 0;
    writer.write(parameter.file_name, tensor.bytes());
    checkpoint.release(found.name);
  }
  steps.finish();
  return dequantized;
}

QuantizationPlan plan_of_stored(const ModelSpec& spec, const Checkpoint& checkpoint, const BitsAndBytesConfig& config) {
  QuantizationPlan plan{.config = config, .quantized = {}, .skipped = {}};
  for (const Parameter& parameter : stored_parameters(spec, {}, DType::f32)) {
    if (!parameter.is_linear_weight) continue;
    const StoredWeight found = find_parameter(checkpoint, spec, parameter);
    if (found.packed) plan.config.bnb_4bit_blocksize = found.packed->blocksize;
    if (found.is_quantized())
      plan.quantized.insert(parameter.module);
    else
      plan.skipped.push_back(parameter.module);
  }
  return plan;
}

int64_t write_requantized(const ModelSpec& spec, const ModelSpec& stored, const Checkpoint& checkpoint,
                          const QuantizationPlan& plan, DType dtype, const ops::Backend& backend,
                          SafetensorsWriter& writer, const Progress& progress, const ParameterEdits& edits) {
  const auto parameters = stored_parameters(spec, plan, dtype);
  Steps steps{progress, "merging", parameters.size()};
  int64_t quantized = 0;
  for (const Parameter& parameter : parameters) {
    steps.next();
    const StoredWeight found = find_parameter(checkpoint, stored, parameter);
    const bool is_edited = edits.has(parameter.name);
    const bool is_quantized = parameter.is_linear_weight && plan.is_quantized(parameter.module);
    if (is_quantized) {
      nn::Weight weight =
          is_edited ? quantize_weight(backend, edited_weight(checkpoint, found, parameter, dtype, backend, edits),
                                      plan.config)
                    : weight_from_stored(found, plan.config);
      if (auto* packed = std::get_if<nn::Weight4Bit>(&weight)) packed->weight.dtype = dtype;  // as it was planned
      write_weight(parameter, nn::to_host(backend, weight), writer);
      ++quantized;
    } else {
      Tensor tensor = is_edited ? edited_weight(checkpoint, found, parameter, parameter.dtype, backend, edits)
                                : plain_weight(checkpoint, found, parameter, parameter.dtype, backend);
      if (parameter.is_transposed) tensor = tensor.transposed();
      writer.write(parameter.file_name, tensor.bytes());
    }
    checkpoint.release(found.name);
  }
  steps.finish();
  return quantized;
}

std::vector<PlannedTensor> plan_saved(const ModelSpec& spec, const Weights& weights) {
  std::vector<PlannedTensor> tensors;
  for (const Parameter& parameter : stored_parameters(spec, weights.plan(), weights.dtype())) {
    const nn::Weight& weight = weights.get(parameter.name);
    if (const auto* packed = std::get_if<nn::Weight4Bit>(&weight)) {
      const auto json_bytes = state_json_size(packed->weight);
      plan_4bit(parameter.file_name, packed->weight, json_bytes, weights.plan().config.bnb_4bit_quant_storage, tensors);
    } else if (std::holds_alternative<nn::WeightInt8>(weight)) {
      plan_int8(parameter.file_module, parameter.file_name, parameter.quantized_shape(), tensors);
    } else {
      tensors.push_back({parameter.file_name, parameter.dtype, parameter.shape});
    }
  }
  return tensors;
}

void write_saved(const ModelSpec& spec, const Weights& weights, const ops::Backend& backend,
                 SafetensorsWriter& writer) {
  for (const Parameter& parameter : stored_parameters(spec, weights.plan(), weights.dtype())) {
    throw_if_cancelled();
    const nn::Weight weight = nn::to_host(backend, weights.get(parameter.name));
    if (const auto* packed = std::get_if<nn::Weight4Bit>(&weight)) {
      const auto json_bytes = state_json_size(packed->weight);
      write_4bit(parameter.file_name, packed->weight, json_bytes, writer);
    } else if (const auto* rows = std::get_if<nn::WeightInt8>(&weight)) {
      write_int8(parameter.file_module, parameter.file_name, rows->weight, writer);
    } else {
      const Tensor& plain = std::get<nn::DenseWeight>(weight).weight;
      writer.write(parameter.file_name, (parameter.is_transposed ? plain.transposed() : plain).bytes());
    }
  }
}

namespace {

/// Keeps the spelling of the config, "torch_dtype" of older files or "dtype" of newer ones.
void set_dtype(Json& config, DType dtype) {
  const bool has_old = config.contains("torch_dtype");
  if (has_old) config["torch_dtype"] = name_of(dtype);
  if (!has_old || config.contains("dtype")) config["dtype"] = name_of(dtype);
}

}  // namespace

Json quantized_config(Json config, const ModelSpec& spec, const QuantizationPlan& plan, DType dtype) {
  set_dtype(config, dtype);
  config["quantization_config"] = quantization_config_json(plan.config);
  const bool is_scaled = spec.final_norm.scale != 1;  // by this key, too: it stays
  for (const auto& [tied, original] : spec.tied)      // a quantized head is a tensor of its own
    if (!is_scaled && plan.is_quantized(tied.substr(0, tied.rfind('.')))) config["tie_word_embeddings"] = false;
  return config;
}

Json dequantized_config(Json config, DType dtype) {
  set_dtype(config, dtype);
  config.erase("quantization_config");
  return config;
}

}  // namespace nibble::models
