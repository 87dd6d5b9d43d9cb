// Quantizing arrays in memory: the functional layer of bitsandbytes (quantize_4bit, quantize_blockwise,
// int8_vectorwise_quant).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/types.h"

namespace nibble {

/// Statistics of a doubly quantized tensor.
struct NestedState {
  std::vector<uint8_t> absmax;          // (blocks) 8-bit codes
  std::vector<float> nested_absmax;     // (ceil(blocks / 256))
  std::vector<float> nested_quant_map;  // (256)
  float offset = 0;
};

/// A 4-bit tensor with the state that bitsandbytes' QuantState holds.
struct Quantized4Bit {
  std::vector<uint8_t> packed;  // (ceil(count / 2)); element 2i in the high half
  std::vector<float> absmax;    // (ceil(count / blocksize)); empty when nested
  std::optional<NestedState> nested;
  std::vector<int64_t> shape;
  DType dtype = DType::f32;  // of the original
  int64_t blocksize = 64;
  std::string quant_type;  // "nf4" or "fp4"
};

/// Dettmers et al. 2023. `data` holds elements of `dtype` (f32, bf16, f16), row-major, of `shape`.
/// Errors: invalid_argument (quant_type, blocksize not in 32..4096, data size against shape).
Quantized4Bit quantize_4bit(std::span<const std::byte> data, DType dtype, std::vector<int64_t> shape,
                            std::string_view quant_type = "fp4", int64_t blocksize = 64,
                            bool compress_statistics = false, int threads = 0);
/// The tensor's bytes in its original dtype.
std::vector<std::byte> dequantize_4bit(const Quantized4Bit& tensor, int threads = 0);

/// Dettmers et al. 2022: blockwise dynamic 8-bit.
struct QuantizedBlockwise {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  std::vector<float> code;  // (256)
  int64_t blocksize = 4096;
  DType dtype = DType::f32;
};
QuantizedBlockwise quantize_blockwise(std::span<const std::byte> data, DType dtype, int64_t blocksize = 4096,
                                      bool is_signed = true, int threads = 0);
std::vector<std::byte> dequantize_blockwise(const QuantizedBlockwise& tensor, int threads = 0);

/// LLM.int8() rows: q = rint(x * 127 / row absmax).
struct QuantizedRows {
  std::vector<int8_t> values;  // (rows, cols)
  std::vector<float> absmax;   // (rows): SCB
  std::vector<int64_t> outlier_columns;
  int64_t rows = 0, cols = 0;
};
QuantizedRows int8_vectorwise_quant(std::span<const std::byte> data, DType dtype, int64_t rows, int64_t cols,
                                    double threshold = 0.0, int threads = 0);
std::vector<float> int8_vectorwise_dequant(const QuantizedRows& tensor, int threads = 0);

}  // namespace nibble
