// quantize_int8_rows and dequantize_int8_rows: LLM.int8(), one scale a row, outliers left out.
#include "kernels/cpu/isa/block_absmax.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

constexpr float kInt8Step = 1.0f / 127.0f;

/// How far ahead of the row that is read for the first time memory is asked, in bytes.
constexpr int64_t kRowAhead = 2048;

template <typename T>
NIBBLE_SIMD F32 load_f16(const T* x) {
  if constexpr (__is_same(T, f16_t)) return load(x);
  f16_t row[kLanes];
  store(row, load(x));
  return load(row);
}

template <typename T>
NIBBLE_INLINE float to_f16_float(T x) {
  return __is_same(T, f16_t) ? to_float(x) : to_float(to_f16(to_float(x)));
}

/// Largest |x| below `limit`; NaN is passed over.
template <typename T>
NIBBLE_SIMD float largest_below(const T* x, int64_t cols, float limit) {
  const F32 bound = set1(limit), zero = set1(0);
  F32 largest = zero;
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    const F32 size = abs(load_f16(x + c));
    largest = max(select(greater(bound, size), size, zero), largest);
  }
  float result = reduce_max(largest);
  for (; c < cols; ++c) {
    const float size = __builtin_fabsf(to_f16_float(x[c]));
    if (size < limit && size > result) result = size;
  }
  return result;
}

NIBBLE_SIMD int8_t encode_int8(float x, float scale) {
  const float q = __builtin_rintf(x * scale);
  if (q != q) return 0;
  return static_cast<int8_t>(q < -127.0f ? -127.0f : q > 127.0f ? 127.0f : q);
}

#if defined(__AVX512F__)
/// Whole numbers of at most 127; NaN becomes 0. The lower limit is left to saturation.
NIBBLE_SIMD __m512i whole_of(F32 x) {
  return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), min(x, set1(127.0f)));
}

template <typename T>
NIBBLE_SIMD void encode_64(const T* x, F32 factor, int8_t* q, bool streamed) {
  const __m512i low = _mm512_packs_epi32(whole_of(load_f16(x) * factor), whole_of(load_f16(x + 16) * factor));
  const __m512i high = _mm512_packs_epi32(whole_of(load_f16(x + 32) * factor), whole_of(load_f16(x + 48) * factor));
  const __m512i bytes = _mm512_max_epi8(_mm512_packs_epi16(low, high), _mm512_set1_epi8(-127));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  store_bytes(q, _mm512_permutexvar_epi32(order, bytes), streamed);
}
#else
template <typename T>
NIBBLE_SIMD void encode_64(const T* x, F32 factor, int8_t* q, bool) {
  for (int64_t i = 0; i < 64; i += kLanes)
    store_int8(q + i, min(set1(127.0f), max(set1(-127.0f), round(load_f16(x + i) * factor))));
}
#endif

/// A whole row, as if it had no outliers. Returns the largest bits of |next|, a row as long, read on the way: memory
/// then works while this row is encoded.
template <typename T>
NIBBLE_SIMD uint32_t encode_row(const T* x, const T* next, int64_t cols, float scale, int8_t* q, bool streamed) {
  const F32 factor = set1(scale);
  LargestBits largest;
  int64_t c = 0;
  for (; c + 64 <= cols; c += 64) {
    prefetch_ahead(next + c, 64 * int64_t{sizeof(T)}, kRowAhead);
    take_64(largest, next + c);
    encode_64(x + c, factor, q + c, streamed);
  }
  for (int64_t i = c; i < cols; ++i) q[i] = encode_int8(to_f16_float(x[i]), scale);
  return finish(largest, next + c, cols - c);
}

template <typename T>
void clear_outliers(const QuantizeInt8RowsArgs& args, const T* x, int8_t* q) {
  for (int64_t c = 0; c < args.cols; ++c) {
    if (!(__builtin_fabsf(to_f16_float(x[c])) >= args.threshold)) continue;
    q[c] = 0;
    // Threads may mark the same column; all write the same byte.
    if (args.outlier_columns) __atomic_store_n(args.outlier_columns + c, uint8_t{1}, __ATOMIC_RELAXED);
  }
}

/// The largest |x|, Inf and all but NaN.
template <typename T>
float largest_number(const T* x, int64_t cols) {
  float largest = 0;
  for (int64_t c = 0; c < cols; ++c) {
    const float size = __builtin_fabsf(to_float(x[c]));
    if (size > largest) largest = size;
  }
  return largest;
}

/// Rows [begin, end), each encoded while the largest value of the next one is found.
template <typename T>
void quantize_range(const QuantizeInt8RowsArgs& args, const T* x, int64_t begin, int64_t end, bool streamed) {
  uint32_t bits = largest_bits(x + begin * args.cols, args.cols);
  for (int64_t r = begin; r < end; ++r) {
    const T* row = x + r * args.cols;
    int8_t* q = args.q + r * args.cols;
    float absmax = __builtin_bit_cast(float, bits);
    if (absmax != absmax) absmax = largest_number(row, args.cols);
    absmax = to_float(to_f16(absmax));  // rounding keeps the order
    const bool has_outlier = args.threshold > 0 && absmax >= args.threshold;
    if (has_outlier) absmax = largest_below(row, args.cols, args.threshold);
    args.absmax[r] = absmax;
    const T* next = r + 1 < end ? row + args.cols : row;
    bits = encode_row(row, next, args.cols, 127.0f * (1.0f / absmax), q, streamed && !has_outlier);
    if (has_outlier) clear_outliers(args, row, q);
  }
}

template <typename T>
void dequantize_row(const DequantizeInt8RowsArgs& args, T* out, int64_t r, bool streamed) {
  const int8_t* q = args.q + r * args.cols;
  const float absmax = args.absmax[r];
  T* row = out + r * args.cols;
  const F32 scale = set1(absmax), step = set1(kInt8Step);
  int64_t c = 0;
#if defined(__AVX512F__)
  if constexpr (__is_same(T, bf16_t))
    if (absmax >= 0x1p-118f)  // then absmax / 127 is no denormal
      for (; c + 32 <= args.cols; c += 32) {
        const F32 low = load(q + c) * scale * step, high = load(q + c + 16) * scale * step;
        store_bytes(row + c, round_normal_bf16(low, high), streamed);
      }
#endif
  for (; c + kLanes <= args.cols; c += kLanes) store(row + c, load(q + c) * scale * step, streamed);
  for (; c < args.cols; ++c) row[c] = from_float<T>(static_cast<float>(q[c]) * absmax * kInt8Step);
}

}  // namespace

void quantize_int8_rows(const Context& context, const QuantizeInt8RowsArgs& args) {
  const int64_t grain = max_of(1, piece_elements(args.rows * args.cols) / max_of(1, args.cols));
  with_type(args.dtype, args.x, [&](const auto* x) {
    const bool streamed = args.cols % 64 == 0 && is_streamed(args.q, args.rows * args.cols);
    for_ranges(context, args.rows, grain, [&](int64_t begin, int64_t end) {
      quantize_range(args, x, begin, end, streamed);
      finish_stream(streamed);
    });
  });
}

void dequantize_int8_rows(const Context& context, const DequantizeInt8RowsArgs& args) {
  const int64_t grain = max_of(1, piece_elements(args.rows * args.cols) / max_of(1, args.cols));
  with_type(args.dtype, args.out, [&](auto* out) {
    const int64_t size_bytes = args.rows * args.cols * int64_t{sizeof *out};
    const bool streamed = args.cols % 64 == 0 && is_streamed(out, size_bytes);
    for_ranges(context, args.rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) dequantize_row(args, out, r, streamed);
      finish_stream(streamed);
    });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
