// Quantization formats as data: what the bytes of NF4, FP4, 8-bit blockwise and LLM.int8() mean. No SIMD, no tensors.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace nibble::quant {

enum class Family : uint8_t { code_book_4bit, blockwise_8bit, int8_vectorwise };

/// A 4-bit code book with its encoding rule: rank = number of thresholds t with y > t, code = code_of_rank[rank].
/// The tables make ties and the sign of zero come out as bitsandbytes' CUDA kernels decide them
/// (docs/formats/nf4.md, docs/formats/fp4.md).
struct CodeBook4Bit {
  std::array<float, 16> values;          // decoded value of each code; FP4's code 8 is -0
  std::array<float, 16> quant_map;       // the same as files hold it: that -0 is +0 there
  std::array<float, 15> thresholds;      // ascending
  std::array<uint8_t, 16> code_of_rank;  // rank 0 is the most negative value
  uint8_t nan_code;                      // code of an element that is NaN, or whose block's absmax is zero
};

/// One line of the list in formats.cpp.
struct Format {
  std::string_view name;  // "nf4", "fp4", "dynamic8_signed", "dynamic8_unsigned", "int8_vectorwise"
  Family family;
  int bits;
  int64_t default_block;               // values that share one absmax; 0: one row
  const CodeBook4Bit* code_book_4bit;  // family code_book_4bit only
  const float* code_book_8bit;         // family blockwise_8bit only: 256 ascending values
};

/// Every format, in the order `nibble info` prints them.
std::span<const Format> formats();

/// nullptr if there is none of that name.
const Format* find_format(std::string_view name);

/// NF4 (Dettmers et al., 2023, appendix E) and FP4 (E2M1 scaled to 1).
extern const CodeBook4Bit kNf4;
extern const CodeBook4Bit kFp4;

/// The dynamic 8-bit maps (Dettmers, 2015; Dettmers et al., 2022): 256 ascending values each.
extern const std::array<float, 256> kDynamicSigned;
extern const std::array<float, 256> kDynamicUnsigned;

/// Values that share one absmax of a nested (doubly quantized) tensor's absmax.
inline constexpr int64_t kNestedBlock = 256;

/// True for 32, 64, ..., 4096: the block sizes that the 4-bit formats allow.
bool is_valid_block_size(int64_t block);

/// Bytes of `count` packed 4-bit codes: two a byte, the first in the high half. An odd count is padded
/// with the code of an element that is 0.
constexpr int64_t packed_size_bytes(int64_t count) { return (count + 1) / 2; }

/// Blocks of `block` values in `count`, the last one possibly short.
constexpr int64_t block_count(int64_t count, int64_t block) { return (count + block - 1) / block; }

}  // namespace nibble::quant
