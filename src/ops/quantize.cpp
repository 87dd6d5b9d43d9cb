// Checks sizes and types, allocates the results and calls the kernels.
#include "ops/quantize.h"

#include <algorithm>

#include "base/checked.h"
#include "base/error.h"

namespace nibble::ops {
namespace {

void require_float(const Tensor& x, std::string_view what) {
  const DType dtype = x.dtype();
  require(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
          "{}: found {} elements, expected float32, bfloat16 or float16", what, name_of(dtype));
}

/// x - mean in place; returns the mean, summed in double.
float center(const Backend& backend, Tensor& x) {
  Tensor mean = backend.empty(DType::f32, {1});
  backend.kernels().center(backend.context(), {x.as<float>(), x.count(), mean.as<float>()});
  float result = 0;
  backend.download(&result, mean.data(), sizeof result);
  return result;
}

/// The 8-bit second level of double quantization.
void nest_statistics(const Backend& backend, Tensor4Bit& x) {
  x.nested_offset = center(backend, x.absmax);
  Tensor8Bit nested = quantize_8bit(backend, x.absmax, quant::kDynamicSigned.data(), quant::kNestedBlock);
  x.absmax = nested.codes;
  x.nested_absmax = nested.absmax;
  x.nested_code_book = backend.empty(DType::f32, {256});
  backend.upload(x.nested_code_book.data(), quant::kDynamicSigned.data(), x.nested_code_book.size_bytes());
  x.is_nested = true;
}

/// Bytes of a tensor that are on the GPU at a time while it is quantized from main memory.
constexpr int64_t kPieceBytes = int64_t{32} << 20;

/// Calls body(elements, first, count) for pieces of `x` whose sizes are multiples of `unit` (but for the last): all of
/// it at once where the kernels reach it, else one piece after the other through the kernels' scratch memory, which
/// those that quantize have no other use for.
template <typename Body>
void for_each_piece(const Backend& backend, const Tensor& x, int64_t unit, const Body& body) {
  if (x.device() == backend.device()) return body(x.data(), int64_t{0}, x.count());
  const int64_t element = size_of(x.dtype());
  const int64_t piece = std::min(x.count(), std::max<int64_t>(kPieceBytes / element / unit, 1) * unit);
  void* buffer = backend.context().scratch->reserve(piece * element);
  for (int64_t first = 0; first < x.count(); first += piece) {
    const int64_t count = std::min(piece, x.count() - first);
    backend.upload(buffer, x.as<std::byte>() + first * element, count * element);
    body(static_cast<const void*>(buffer), first, count);
  }
}

}  // namespace

int64_t Tensor4Bit::count() const { return checked_count(shape, "4-bit tensor"); }

int64_t Tensor4Bit::statistics_bytes() const {
  return absmax.size_bytes() + (is_nested ? nested_absmax.size_bytes() + nested_code_book.size_bytes() : 0);
}

kernels::Absmax Tensor4Bit::absmax_view() const {
  if (!is_nested) return {.values = absmax.as<float>()};
  return {.codes = absmax.as<uint8_t>(),
          .nested_absmax = nested_absmax.as<float>(),
          .nested_code_book = nested_code_book.as<float>(),
          .offset = nested_offset};
}

namespace {

template <typename Move>
Tensor4Bit moved(const Tensor4Bit& x, const Move& move) {
  Tensor4Bit result = x;
  for (Tensor* tensor : {&result.packed, &result.absmax, &result.nested_absmax, &result.nested_code_book})
    *tensor = move(*tensor);
  return result;
}

}  // namespace

Tensor4Bit to_device(const Backend& backend, const Tensor4Bit& x) {
  return moved(x, [&](const Tensor& tensor) { return backend.to_device(tensor); });
}
Tensor4Bit to_host(const Backend& backend, const Tensor4Bit& x) {
  return moved(x, [&](const Tensor& tensor) { return backend.to_host(tensor); });
}
TensorInt8 to_device(const Backend& backend, const TensorInt8& x) {
  return {backend.to_device(x.values), backend.to_device(x.absmax)};
}
TensorInt8 to_host(const Backend& backend, const TensorInt8& x) {
  return {backend.to_host(x.values), backend.to_host(x.absmax)};
}

const quant::Format& format_4bit(std::string_view quant_type) {
  const quant::Format* format = quant::find_format(quant_type);
  if (!format || format->family != quant::Family::code_book_4bit)
    fail(ErrorCode::unsupported, "quant_type: found '{}', expected 'nf4' or 'fp4'", quant_type);
  return *format;
}

Tensor4Bit quantize_4bit(const Backend& backend, const Tensor& x, const quant::Format& format, int64_t block,
                         bool is_nested) {
  require_float(x, "quantize_4bit");
  require(quant::is_valid_block_size(block), "blocksize: found {}, expected a power of two from 32 to 4096", block);
  Tensor4Bit result;
  result.format = &format;
  result.block = block;
  result.shape = x.shape();
  result.dtype = x.dtype();
  result.packed = backend.empty(DType::u8, {quant::packed_size_bytes(x.count())});
  result.absmax = backend.empty(DType::f32, {quant::block_count(x.count(), block)});
  for_each_piece(backend, x, block, [&](const void* elements, int64_t first, int64_t count) {
    backend.kernels().quantize_4bit(backend.context(), {.x = elements,
                                                        .dtype = x.dtype(),
                                                        .count = count,
                                                        .block = block,
                                                        .code_book = format.code_book_4bit,
                                                        .packed = result.packed.as<uint8_t>() + first / 2,
                                                        .absmax = result.absmax.as<float>() + first / block});
  });
  if (is_nested) nest_statistics(backend, result);
  return result;
}

Tensor dequantize_4bit(const Backend& backend, const Tensor4Bit& anywhere, DType dtype) {
  const Tensor4Bit x = to_device(backend, anywhere);
  Tensor result = backend.empty(dtype, x.shape);
  require_float(result, "dequantize_4bit");
  backend.kernels().dequantize_4bit(backend.context(), {.packed = x.packed.as<uint8_t>(),
                                                        .absmax = x.absmax_view(),
                                                        .count = result.count(),
                                                        .block = x.block,
                                                        .code_book = x.format->code_book_4bit->values.data(),
                                                        .out = result.data(),
                                                        .dtype = dtype});
  return result;
}

Tensor8Bit quantize_8bit(const Backend& backend, const Tensor& anywhere, const float* code_book, int64_t block) {
  require_float(anywhere, "quantize_8bit");
  require(block > 0, "blocksize: found {}, expected a positive number", block);
  const Tensor x = backend.to_device(anywhere);
  Tensor8Bit result{backend.empty(DType::u8, {x.count()}),
                    backend.empty(DType::f32, {quant::block_count(x.count(), block)})};
  backend.kernels().quantize_8bit(backend.context(), {.x = x.data(),
                                                      .dtype = x.dtype(),
                                                      .count = x.count(),
                                                      .block = block,
                                                      .code_book = code_book,
                                                      .codes = result.codes.as<uint8_t>(),
                                                      .absmax = result.absmax.as<float>()});
  return result;
}

TensorInt8 quantize_int8_weight(const Backend& backend, const Tensor& x) {
  require_float(x, "quantize_int8_rows");
  require(x.shape().size() == 2, "quantize_int8_rows: found shape {}, expected 2 dimensions", to_string(x.shape()));
  const int64_t cols = x.dim(1);
  TensorInt8 result{backend.empty(DType::i8, x.shape()), backend.empty(DType::f32, {x.dim(0)})};
  for_each_piece(backend, x, std::max<int64_t>(cols, 1), [&](const void* elements, int64_t first, int64_t count) {
    if (count == 0) return;
    backend.kernels().quantize_int8_rows(backend.context(), {.x = elements,
                                                             .dtype = x.dtype(),
                                                             .rows = count / cols,
                                                             .cols = cols,
                                                             .threshold = 0,
                                                             .q = result.values.as<int8_t>() + first,
                                                             .absmax = result.absmax.as<float>() + first / cols,
                                                             .outlier_columns = nullptr});
  });
  return result;
}

Tensor dequantize_int8(const Backend& backend, const TensorInt8& anywhere, DType dtype) {
  const TensorInt8 x = to_device(backend, anywhere);
  Tensor result = backend.empty(dtype, x.values.shape());
  require_float(result, "dequantize_int8_rows");
  backend.kernels().dequantize_int8_rows(backend.context(), {.q = x.values.as<int8_t>(),
                                                             .absmax = x.absmax.as<float>(),
                                                             .rows = result.dim(0),
                                                             .cols = result.dim(1),
                                                             .out = result.data(),
                                                             .dtype = dtype});
  return result;
}

}  // namespace nibble::ops
