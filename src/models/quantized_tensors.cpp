// The names, types and order that bitsandbytes' state dictionaries have.
#include "models/quantized_tensors.h"

#include "base/error.h"
#include "checkpoint/quant_state.h"
#include "quant/format.h"

namespace nibble::models {
namespace {

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

std::string state_name(const std::string& weight_name, const ops::Tensor4Bit& weight) {
  return weight_name + ".quant_state.bitsandbytes__" + std::string(weight.format->name);
}

std::string scb_name(const std::string& module) { return module + ".SCB"; }

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

int64_t state_json_room(ops::Tensor4Bit weight) {
  weight.nested_offset = 0;
  const size_t length = quant_state_json(stored_state(weight)).size();
  return static_cast<int64_t>(weight.is_nested ? length + kLongestNumber : length);
}

int64_t state_json_size(const ops::Tensor4Bit& weight) {
  return static_cast<int64_t>(quant_state_json(stored_state(weight)).size());
}

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

ops::Tensor4Bit blueprint(const BitsAndBytesConfig& config, const Shape& shape, DType dtype) {
  ops::Tensor4Bit weight;
  weight.format = &ops::format_4bit(config.bnb_4bit_quant_type);
  weight.block = config.bnb_4bit_blocksize;
  weight.is_nested = config.bnb_4bit_use_double_quant;
  weight.shape = shape;
  weight.dtype = dtype;
  return weight;
}

}  // namespace nibble::models
