// Plans name every tensor first, since a safetensors header precedes the data; writers then stream in that order.
#include "models/convert_weights.h"

#include "base/cancel.h"
#include "base/checked.h"
#include "base/error.h"
#include "models/module_tree.h"
#include "quant/format.h"

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

  Shape quantized_shape() const { return is_transposed ? Shape{shape[1], shape[0]} : shape; }
};

std::vector<Parameter> stored_parameters(const ModelSpec& spec, const QuantizationPlan& plan) {
  std::vector<Parameter> result;
  for_each_module(spec, [&](const std::string& path, const ModuleSpec& module) {
    for (const ParameterSpec& parameter : module.parameters) {
      const std::string name = join(path, parameter.name);
      const bool is_linear_weight = module.kind == ModuleKind::linear && parameter.name == "weight";
      const bool is_twin = resolve_tied(spec, name) != name;
      if (is_twin && !(is_linear_weight && plan.is_quantized(path))) continue;
      const std::string file_name = stored_name(spec, name);
      result.push_back({path, name, file_name.substr(0, file_name.size() - parameter.name.size() - 1), file_name,
                        parameter.shape, is_linear_weight, is_linear_weight && module.is_transposed});
    }
  });
  return result;
}

Stored4Bit stored_state(const ops::Tensor4Bit& weight) {
  Stored4Bit state;
  state.nested_offset = weight.nested_offset;
  state.is_nested = weight.is_nested;
  state.quant_type = weight.format->name;
  state.blocksize = weight.block;
  state.shape = weight.shape;
  state.dtype = weight.dtype;
  return state;
}

/// Room for any offset: the JSON is padded with blanks, which every reader of JSON skips.
constexpr size_t kLongestNumber = 24;

int64_t state_json_room(ops::Tensor4Bit weight) {
  weight.nested_offset = 0;
  const size_t length = quant_state_json(stored_state(weight)).size();
  return static_cast<int64_t>(weight.is_nested ? length + kLongestNumber : length);
}

std::string state_name(const std::string& weight_name, const ops::Tensor4Bit& weight) {
  return weight_name + ".quant_state.bitsandbytes__" + std::string(weight.format->name);
}

std::string scb_name(const std::string& module) { return module + ".SCB"; }

/// The tensors of a 4-bit weight in the order they are written.
void plan_4bit(const std::string& name, const ops::Tensor4Bit& weight, int64_t json_bytes, DType storage,
               std::vector<PlannedTensor>& plan) {
  const int64_t blocks = quant::block_count(weight.count(), weight.block);
  const int64_t bytes = quant::packed_size_bytes(weight.count());
  if (bytes % size_of(storage) != 0)
    fail(ErrorCode::invalid_argument, "bnb_4bit_quant_storage: '{}' has {} bytes, no multiple of {}", name, bytes,
         size_of(storage));
  plan.push_back({name, storage, {bytes / size_of(storage), 1}});
  plan.push_back({name + ".absmax", weight.is_nested ? DType::u8 : DType::f32, {blocks}});
  if (weight.is_nested) {
    plan.push_back({name + ".nested_absmax", DType::f32, {quant::block_count(blocks, quant::kNestedBlock)}});
    plan.push_back({name + ".nested_quant_map", DType::f32, {256}});
  }
  plan.push_back({name + ".quant_map", DType::f32, {16}});
  plan.push_back({state_name(name, weight), DType::u8, {json_bytes}});
}

void plan_int8(const std::string& module, const std::string& name, const Shape& shape,
               std::vector<PlannedTensor>& plan) {
  plan.push_back({scb_name(module), DType::f32, {shape[0]}});
  plan.push_back({name, DType::i8, shape});
  plan.push_back({name + "_format", DType::u8, {}});
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

void write_4bit(const std::string& name, const ops::Tensor4Bit& weight, int64_t json_bytes, SafetensorsWriter& writer) {
  writer.write(name, weight.packed.bytes());
  writer.write(name + ".absmax", weight.absmax.bytes());
  if (weight.is_nested) {
    writer.write(name + ".nested_absmax", weight.nested_absmax.bytes());
    writer.write(name + ".nested_quant_map", weight.nested_code_book.bytes());
  }
  writer.write(name + ".quant_map", std::as_bytes(std::span(weight.format->code_book_4bit->quant_map)));
  std::string json = quant_state_json(stored_state(weight));
  json.resize(static_cast<size_t>(json_bytes), ' ');
  writer.write(state_name(name, weight), bytes_of(json));
}

void write_int8(const std::string& module, const std::string& name, const ops::TensorInt8& weight,
                SafetensorsWriter& writer) {
  writer.write(scb_name(module), weight.absmax.bytes());
  writer.write(name, weight.values.bytes());
  writer.write(name + "_format", bytes_of(std::string_view("\0", 1)));  // 0: rows
}

/// A 4-bit weight without data, for planning.
ops::Tensor4Bit blueprint(const BitsAndBytesConfig& config, const Shape& shape, DType dtype) {
  ops::Tensor4Bit weight;
  weight.format = &ops::format_4bit(config.bnb_4bit_quant_type);
  weight.block = config.bnb_4bit_blocksize;
  weight.is_nested = config.bnb_4bit_use_double_quant;
  weight.shape = shape;
  weight.dtype = dtype;
  return weight;
}

/// Reports how many parameters of how many are written, and stops on request between two.
struct Steps {
  const Progress& progress;
  std::string_view stage;
  uint64_t total;
  uint64_t done = 0;

  void next() {
    throw_if_cancelled();
    if (progress) progress(stage, done, total);
    ++done;
  }
  void finish() const {
    if (progress) progress(stage, total, total);
  }
};

}  // namespace

std::vector<PlannedTensor> plan_quantized(const ModelSpec& spec, const QuantizationPlan& plan, DType dtype) {
  std::vector<PlannedTensor> tensors;
  for (const Parameter& parameter : stored_parameters(spec, plan)) {
    if (!parameter.is_linear_weight || !plan.is_quantized(parameter.module)) {
      tensors.push_back({parameter.file_name, dtype, parameter.shape});
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
  const auto parameters = stored_parameters(spec, plan);
  Steps steps{progress, "quantizing", parameters.size()};
  int64_t quantized = 0;
  for (const Parameter& parameter : parameters) {
    steps.next();
    const bool wants_quantized = parameter.is_linear_weight && plan.is_quantized(parameter.module);
    const std::string& original = wants_quantized ? resolve_tied(spec, parameter.name) : parameter.name;
    const StoredWeight stored = find_stored(checkpoint, spec, original, parameter.shape, parameter.is_transposed);
    if (stored.is_quantized())
      fail(ErrorCode::invalid_argument, "tensor '{}' is quantized already; expected a plain checkpoint", stored.name);
    Tensor tensor = checkpoint.get(stored.name).to(dtype);
    if (!wants_quantized) {
      writer.write(parameter.file_name, tensor.bytes());
    } else {
      if (parameter.is_transposed) tensor = tensor.transposed();
      const nn::Weight weight = quantize_weight(backend, tensor, plan.config);
      if (const auto* packed = std::get_if<nn::Weight4Bit>(&weight))
        write_4bit(parameter.file_name, packed->weight, state_json_room(packed->weight), writer);
      else
        write_int8(parameter.file_module, parameter.file_name, std::get<nn::WeightInt8>(weight).weight, writer);
      ++quantized;
    }
    checkpoint.release(stored.name);
  }
  steps.finish();
  return quantized;
}

std::vector<PlannedTensor> plan_dequantized(const ModelSpec& spec, DType dtype) {
  std::vector<PlannedTensor> tensors;
  for (const Parameter& parameter : stored_parameters(spec, {}))
    tensors.push_back({parameter.file_name, dtype, parameter.shape});
  return tensors;
}

int64_t write_dequantized(const ModelSpec& spec, const Checkpoint& checkpoint, DType dtype, const ops::Backend& backend,
                          SafetensorsWriter& writer, const Progress& progress) {
  const auto parameters = stored_parameters(spec, {});
  Steps steps{progress, "dequantizing", parameters.size()};
  int64_t dequantized = 0;
  for (const Parameter& parameter : parameters) {
    steps.next();
    const StoredWeight stored = find_stored(checkpoint, spec, parameter.name, parameter.shape, parameter.is_transposed);
    Tensor tensor;
    if (!stored.is_quantized()) {
      tensor = checkpoint.get(stored.name).to(dtype);
    } else {
      const nn::Weight weight = weight_from_stored(stored, {});
      if (const auto* packed = std::get_if<nn::Weight4Bit>(&weight))
        tensor = ops::dequantize_4bit(backend, packed->weight, dtype);
      else
        tensor = ops::dequantize_int8(backend, std::get<nn::WeightInt8>(weight).weight, dtype);
      if (parameter.is_transposed) tensor = tensor.transposed();
      ++dequantized;
    }
    writer.write(parameter.file_name, tensor.bytes());
    checkpoint.release(stored.name);
  }
  steps.finish();
  return dequantized;
}

std::vector<PlannedTensor> plan_saved(const ModelSpec& spec, const Weights& weights) {
  std::vector<PlannedTensor> tensors;
  for (const Parameter& parameter : stored_parameters(spec, weights.plan())) {
    const nn::Weight& weight = weights.get(parameter.name);
    if (const auto* packed = std::get_if<nn::Weight4Bit>(&weight)) {
      const auto json_bytes = static_cast<int64_t>(quant_state_json(stored_state(packed->weight)).size());
      plan_4bit(parameter.file_name, packed->weight, json_bytes, weights.plan().config.bnb_4bit_quant_storage, tensors);
    } else if (std::holds_alternative<nn::WeightInt8>(weight)) {
      plan_int8(parameter.file_module, parameter.file_name, parameter.quantized_shape(), tensors);
    } else {
      tensors.push_back({parameter.file_name, weights.dtype(), parameter.shape});
    }
  }
  return tensors;
}

void write_saved(const ModelSpec& spec, const Weights& weights, SafetensorsWriter& writer) {
  for (const Parameter& parameter : stored_parameters(spec, weights.plan())) {
    throw_if_cancelled();
    const nn::Weight& weight = weights.get(parameter.name);
    if (const auto* packed = std::get_if<nn::Weight4Bit>(&weight)) {
      const auto json_bytes = static_cast<int64_t>(quant_state_json(stored_state(packed->weight)).size());
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
  for (const auto& [tied, original] : spec.tied)  // a quantized head is a tensor of its own
    if (plan.is_quantized(tied.substr(0, tied.rfind('.')))) config["tie_word_embeddings"] = false;
  return config;
}

Json dequantized_config(Json config, DType dtype) {
  set_dtype(config, dtype);
  config.erase("quantization_config");
  return config;
}

}  // namespace nibble::models
