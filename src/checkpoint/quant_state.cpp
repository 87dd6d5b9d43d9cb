// Finds the statistics that lie beside a quantized weight and checks every size against its shape.
#include "checkpoint/quant_state.h"

#include <bit>
#include <charconv>
#include <cmath>

#include "base/checked.h"
#include "base/json.h"
#include "quant/format.h"

namespace nibble {
namespace {

constexpr int64_t kMaxStateBytes = 1 << 16;
constexpr std::string_view kStateKey = ".quant_state.bitsandbytes__";

// A statistics tensor of known type and number of elements.
Tensor get_statistics(const Checkpoint& checkpoint, const std::string& name, DType dtype, int64_t count) {
  const TensorInfo* info = checkpoint.find(name);
  if (!info) fail(ErrorCode::corrupt_file, "tensor '{}' is missing: its weight is quantized", name);
  Tensor tensor = checkpoint.get(name);
  if (tensor.dtype() != dtype || tensor.count() != count)
    fail(ErrorCode::corrupt_file, "{}: tensor '{}': found {} {}, expected {} [{}]", info->file, name,
         name_of(tensor.dtype()), to_string(tensor.shape()), name_of(dtype), count);
  return tensor;
}

// What the JSON says: type, block size, and the original's shape and dtype.
void read_state(const Tensor& text, const std::string& source, Stored4Bit& state) {
  const auto json = parse_json({text.as<char>(), static_cast<size_t>(text.count())}, source);
  const auto quant_type = get_value<std::string>(json, "quant_type", source);
  if (quant_type != state.quant_type)
    fail(ErrorCode::corrupt_file, "{}: quant_type '{}', expected '{}'", source, quant_type, state.quant_type);
  state.blocksize = get_value<int64_t>(json, "blocksize", source);
  if (state.blocksize < 32 || state.blocksize > 4096 || !std::has_single_bit(static_cast<uint64_t>(state.blocksize)))
    fail(ErrorCode::corrupt_file, "{}: blocksize {}, expected 32, 64, ..., 4096", source, state.blocksize);
  const auto dtype = get_value<std::string>(json, "dtype", source);
  if (dtype != "float16" && dtype != "bfloat16" && dtype != "float32")
    fail(ErrorCode::corrupt_file, "{}: dtype '{}', expected float16, bfloat16 or float32", source, dtype);
  state.dtype = dtype_from_name(dtype);
  state.shape = get_value<Shape>(json, "shape", source);
  if (state.shape.empty()) fail(ErrorCode::corrupt_file, "{}: the shape is empty", source);

  const auto nested_blocksize = find_value<int64_t>(json, "nested_blocksize", source);
  state.is_nested = nested_blocksize.has_value();
  if (!state.is_nested) return;
  if (*nested_blocksize != quant::kNestedBlock)
    fail(ErrorCode::unsupported, "{}: nested_blocksize {}, expected {}", source, *nested_blocksize,
         quant::kNestedBlock);
  const auto nested_dtype = get_value<std::string>(json, "nested_dtype", source);
  if (nested_dtype != "float32")
    fail(ErrorCode::unsupported, "{}: nested_dtype '{}', expected float32", source, nested_dtype);
  state.nested_offset = static_cast<float>(get_value<double>(json, "nested_offset", source));
}

// The packed bytes under any storage type, rounded up to whole elements of it.
Tensor get_packed(const Checkpoint& checkpoint, const std::string& name, int64_t count) {
  const TensorInfo* info = checkpoint.find(name);
  if (!info) fail(ErrorCode::corrupt_file, "tensor '{}' is missing but has a quant_state", name);
  const Tensor stored = checkpoint.get(name);
  const int64_t expected = quant::packed_size_bytes(count), item = size_of(stored.dtype());
  if (stored.size_bytes() < expected || stored.size_bytes() >= expected + item)
    fail(ErrorCode::corrupt_file, "{}: tensor '{}': found {} packed bytes, expected {} for {} values", info->file, name,
         stored.size_bytes(), expected, count);
  return Tensor::view(DType::u8, {expected}, stored.data(), std::make_shared<Tensor>(stored));
}

// Python's repr of a float: shortest digits that round-trip, an exponent below 1e-4 and from 1e16.
std::string python_repr(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  char buffer[32];
  const auto scientific = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(scientific.ptr - buffer));
  const int exponent = std::stoi(std::string(text.substr(text.find('e') + 1)));
  if (exponent < -4 || exponent >= 16) return std::string(text);
  const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed);
  std::string plain(buffer, fixed.ptr);
  return plain.find('.') == std::string::npos ? plain + ".0" : plain;
}

}  // namespace

std::optional<Stored4Bit> find_4bit(const Checkpoint& checkpoint, const std::string& name) {
  Stored4Bit state;
  for (const char* type : {"nf4", "fp4"}) {
    if (!checkpoint.find(name + std::string(kStateKey) + type)) continue;
    if (!state.quant_type.empty())
      fail(ErrorCode::corrupt_file, "tensor '{}' has both an nf4 and an fp4 quant_state", name);
    state.quant_type = type;
  }
  if (state.quant_type.empty()) {
    if (const TensorInfo* absmax = checkpoint.find(name + ".absmax"))
      fail(ErrorCode::corrupt_file, "{}: '{}' is there but '{}{}nf4' or '...fp4' is missing", absmax->file,
           absmax->name, name, kStateKey);
    return std::nullopt;
  }
  const std::string state_name = name + std::string(kStateKey) + state.quant_type;
  const TensorInfo& info = *checkpoint.find(state_name);
  const std::string source = info.file + ": tensor '" + state_name + "'";
  const Tensor text = checkpoint.get(state_name);
  if (text.dtype() != DType::u8)
    fail(ErrorCode::corrupt_file, "{}: found {}, expected uint8", source, name_of(text.dtype()));
  if (text.count() > kMaxStateBytes)
    fail(ErrorCode::corrupt_file, "{}: {} bytes, expected at most {}", source, text.count(), kMaxStateBytes);
  read_state(text, source, state);

  const int64_t count = checked_count(state.shape, source);
  const int64_t blocks = quant::block_count(count, state.blocksize);
  state.packed = get_packed(checkpoint, name, count);
  state.absmax = get_statistics(checkpoint, name + ".absmax", state.is_nested ? DType::u8 : DType::f32, blocks);
  if (checkpoint.find(name + ".quant_map")) get_statistics(checkpoint, name + ".quant_map", DType::f32, 16);
  if (state.is_nested) {
    state.nested_absmax = get_statistics(checkpoint, name + ".nested_absmax", DType::f32,
                                         quant::block_count(blocks, quant::kNestedBlock));
    state.nested_quant_map = get_statistics(checkpoint, name + ".nested_quant_map", DType::f32, 256);
  }
  return state;
}

std::optional<StoredInt8> find_int8(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo* info = checkpoint.find(name);
  if (!info || !std::string_view(name).ends_with("weight")) return std::nullopt;
  const std::string module = name.substr(0, name.size() - std::string_view("weight").size());
  const TensorInfo* scb = checkpoint.find(module + "SCB");
  const bool is_int8 = info->is_supported && info->dtype == DType::i8;
  if (!is_int8 && !scb) return std::nullopt;
  if (!is_int8 || !scb || info->shape.size() != 2)
    fail(ErrorCode::corrupt_file, "{}: tensor '{}': found {} {} {} '{}SCB', expected I8 [rows, cols] with it",
         info->file, name, info->dtype_name, to_string(info->shape), scb ? "with" : "without", module);
  if (const TensorInfo* format = checkpoint.find(module + "weight_format")) {
    const Tensor value = checkpoint.get(format->name);
    if (value.dtype() != DType::u8 || value.count() != 1)
      fail(ErrorCode::corrupt_file, "{}: tensor '{}': expected one uint8", format->file, format->name);
    if (*value.as<uint8_t>() != 0)
      fail(ErrorCode::unsupported, "{}: tensor '{}': weight format {}, expected 0 (row)", format->file, format->name,
           *value.as<uint8_t>());
  }
  return StoredInt8{checkpoint.get(name), get_statistics(checkpoint, module + "SCB", DType::f32, info->shape[0])};
}

std::string quant_state_json(const Stored4Bit& state) {
  std::string json = fmt::format(R"({{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}])",
                                 state.quant_type, state.blocksize, name_of(state.dtype), fmt::join(state.shape, ", "));
  if (state.is_nested)
    json += fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {})",
                        quant::kNestedBlock, python_repr(state.nested_offset));
  return json + "}";
}

}  // namespace nibble
