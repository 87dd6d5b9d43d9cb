// Checks sizes and types, allocates the results and calls the kernels.
#include "ops/quantize.h"

#include "base/checked.h"
#include "base/error.h"

namespace nibble::ops {
namespace {

void require_float(const Tensor& x, std::string_view what) {
  const DType dtype = x.dtype();
  require(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
          "{}: found {} elements, expected float32, bfloat16 or float16", what, name_of(dtype));
}

/// The 8-bit second level of double quantization; the mean is summed in double.
void nest_statistics(const Backend& backend, Tensor4Bit& x) {
  const int64_t blocks = x.absmax.count();
  float* absmax = x.absmax.as<float>();
  double sum = 0;
  for (int64_t i = 0; i < blocks; ++i) sum += absmax[i];
  x.nested_offset = blocks ? static_cast<float>(sum / static_cast<double>(blocks)) : 0.0f;
  for (int64_t i = 0; i < blocks; ++i) absmax[i] -= x.nested_offset;
  Tensor8Bit nested = quantize_8bit(backend, x.absmax, quant::kDynamicSigned.data(), quant::kNestedBlock);
  x.absmax = nested.codes;
  x.nested_absmax = nested.absmax;
  x.nested_code_book = Tensor(DType::f32, {256});
  std::copy(quant::kDynamicSigned.begin(), quant::kDynamicSigned.end(), x.nested_code_book.as<float>());
  x.is_nested = true;
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
  result.packed = Tensor(DType::u8, {quant::packed_size_bytes(x.count())});
  result.absmax = Tensor(DType::f32, {quant::block_count(x.count(), block)});
  backend.kernels().quantize_4bit(backend.context(), {.x = x.data(),
                                                      .dtype = x.dtype(),
                                                      .count = x.count(),
                                                      .block = block,
                                                      .code_book = format.code_book_4bit,
                                                      .packed = result.packed.as<uint8_t>(),
                                                      .absmax = result.absmax.as<float>()});
  if (is_nested) nest_statistics(backend, result);
  return result;
}

Tensor dequantize_4bit(const Backend& backend, const Tensor4Bit& x, DType dtype) {
  Tensor result(dtype, x.shape);
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

Tensor8Bit quantize_8bit(const Backend& backend, const Tensor& x, const float* code_book, int64_t block) {
  require_float(x, "quantize_8bit");
  require(block > 0, "blocksize: found {}, expected a positive number", block);
  Tensor8Bit result{Tensor(DType::u8, {x.count()}), Tensor(DType::f32, {quant::block_count(x.count(), block)})};
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
  const Tensor rounded = x.to(DType::f16);
  TensorInt8 result{Tensor(DType::i8, x.shape()), Tensor(DType::f32, {x.dim(0)})};
  backend.kernels().quantize_int8_rows(backend.context(), {.x = rounded.data(),
                                                           .dtype = rounded.dtype(),
                                                           .rows = x.dim(0),
                                                           .cols = x.dim(1),
                                                           .threshold = 0,
                                                           .q = result.values.as<int8_t>(),
                                                           .absmax = result.absmax.as<float>(),
                                                           .outlier_columns = nullptr});
  return result;
}

Tensor dequantize_int8(const Backend& backend, const TensorInt8& x, DType dtype) {
  Tensor result(dtype, x.values.shape());
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
