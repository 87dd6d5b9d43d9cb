// dequantize_8bit: code book value times the block's absmax.
#include "kernels/cpu/isa/byte_tables.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

#if defined(__AVX512F__)

constexpr int64_t kStep = 64;

struct Values {
  FloatTable table;
};

NIBBLE_SIMD Values make_values(const float* code_book) { return {load_float_table(code_book)}; }

template <typename T>
NIBBLE_SIMD void decode_step(const Values& values, const uint8_t* codes, F32 scale, T* out) {
  // Dwords 4 l + q from 4 q + l, so that the look-up leaves the elements in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  F32 decoded[4];
  look_up(values.table, _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes)), decoded);
  for (int q = 0; q < 4; ++q) store(out + 16 * q, decoded[q] * scale);
}

#elif defined(__AVX2__)

constexpr int64_t kStep = 8;

struct Values {
  const float* table;
};

NIBBLE_SIMD Values make_values(const float* code_book) { return {code_book}; }

template <typename T>
NIBBLE_SIMD void decode_step(const Values& values, const uint8_t* codes, F32 scale, T* out) {
  const __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
  store(out, _mm256_i32gather_ps(values.table, index, 4) * scale);
}

#else

constexpr int64_t kStep = 4;

struct Values {
  const float* table;
};

NIBBLE_SIMD Values make_values(const float* code_book) { return {code_book}; }

template <typename T>
NIBBLE_SIMD void decode_step(const Values& values, const uint8_t* codes, F32 scale, T* out) {
  const F32 decoded = {values.table[codes[0]], values.table[codes[1]], values.table[codes[2]], values.table[codes[3]]};
  store(out, decoded * scale);
}

#endif

template <typename T>
void dequantize_blocks(const Dequantize8BitArgs& args, const Values& values, T* out, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const F32 scale = set1(args.absmax[b]);
    int64_t i = b * args.block;
    const int64_t last = min_of(args.count, i + args.block);
    for (; i + kStep <= last; i += kStep) decode_step(values, args.codes + i, scale, out + i);
    for (; i < last; ++i) out[i] = from_float<T>(args.code_book[args.codes[i]] * args.absmax[b]);
  }
}

}  // namespace

void dequantize_8bit(const Context& context, const Dequantize8BitArgs& args) {
  const Values values = make_values(args.code_book);
  const int64_t grain = max_of(1, 32768 / args.block);
  with_type(args.dtype, args.out, [&](auto* out) {
    for_ranges(context, ceil_of(args.count, args.block), grain,
               [&](int64_t begin, int64_t end) { dequantize_blocks(args, values, out, begin, end); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
