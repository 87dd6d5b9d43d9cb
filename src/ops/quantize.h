// Quantizing and dequantizing tensors: bitsandbytes' functional layer over the kernel table.
#pragma once

#include <string_view>

#include "kernels/kernels.h"
#include "ops/backend.h"
#include "quant/format.h"
#include "tensor/tensor.h"

namespace nibble::ops {

/// A 4-bit tensor with its statistics (bitsandbytes' QuantState).
struct Tensor4Bit {
  Tensor packed;            // u8 ((count + 1) / 2)
  Tensor absmax;            // f32 (blocks), or u8 when nested
  Tensor nested_absmax;     // f32 (ceil(blocks / 256)), nested only
  Tensor nested_code_book;  // f32 (256), nested only
  float nested_offset = 0;
  bool is_nested = false;
  const quant::Format* format = nullptr;  // "nf4" or "fp4"
  int64_t block = 64;
  Shape shape;               // of the original
  DType dtype = DType::f32;  // of the original

  int64_t count() const;
  /// Bytes of absmax and nested statistics.
  int64_t statistics_bytes() const;
  kernels::Absmax absmax_view() const;
};

/// An LLM.int8() weight: value = q * absmax / 127.
struct TensorInt8 {
  Tensor values;  // i8 (rows, cols)
  Tensor absmax;  // f32 (rows)
};

// On a GPU, what is quantized or dequantized may lie in main memory or there (then it is streamed through in pieces);
// results lie there.

/// "nf4" or "fp4". Errors: unsupported for any other name.
const quant::Format& format_4bit(std::string_view quant_type);

/// Errors: invalid_argument (block size, element type).
Tensor4Bit quantize_4bit(const Backend& backend, const Tensor& x, const quant::Format& format, int64_t block,
                         bool is_nested);
Tensor dequantize_4bit(const Backend& backend, const Tensor4Bit& x, DType dtype);

/// The tensors of `x` where the kernels of `backend` reach them, or in main memory.
Tensor4Bit to_device(const Backend& backend, const Tensor4Bit& x);
Tensor4Bit to_host(const Backend& backend, const Tensor4Bit& x);
TensorInt8 to_device(const Backend& backend, const TensorInt8& x);
TensorInt8 to_host(const Backend& backend, const TensorInt8& x);

/// 8-bit codes of `x` by a 256-value code book; absmax per `block` values.
struct Tensor8Bit {
  Tensor codes;   // u8 (count)
  Tensor absmax;  // f32 (ceil(count / block))
};
Tensor8Bit quantize_8bit(const Backend& backend, const Tensor& x, const float* code_book, int64_t block);

/// Rows of a 2-D weight, rounded to fp16 first, as bitsandbytes stores them.
TensorInt8 quantize_int8_weight(const Backend& backend, const Tensor& x);
Tensor dequantize_int8(const Backend& backend, const TensorInt8& x, DType dtype);

}  // namespace nibble::ops
