// matmul_int8: LLM.int8() with int32 accumulation, outlier columns apart in fp32.
#include "kernels/cpu/isa/entries.h"
#include "kernels/cpu/isa/gemv_int8.h"
#include "kernels/cpu/isa/panel_gemm.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

/// What the threads share about x: everything is per row but the list of columns, which is the call's.
struct QuantizedX {
  const MatmulInput* input;
  float threshold;
  float* absmax;        // (m) over the elements that are no outliers
  uint8_t* is_outlier;  // (cols)
  int32_t* columns;     // (outliers) ascending
  int64_t outliers;
  // of one slab:
  int64_t first, rows, depth;
  uint32_t* packed;  // tiles of (depth, rows of the tile)
  int32_t* sum;      // (rows) of the quantized elements
  float* outlier_x;  // (rows, outliers)
};

NIBBLE_INLINE float magnitude(float x) { return x < 0 ? -x : x; }
NIBBLE_INLINE float round_f16(float x) { return to_float(to_f16(x)); }
NIBBLE_INLINE float round_to(DType compute, float x) {
  return compute == DType::bf16 ? to_float(to_bf16(x)) : compute == DType::f16 ? round_f16(x) : x;
}
/// An element of x in a product of its own: f16 does not make what is too large for it infinite.
NIBBLE_INLINE float outlier_value(DType compute, float x) {
  const float rounded = round_to(compute, x);
  return compute == DType::f16 && magnitude(rounded) > 65504.0f ? x : rounded;
}
NIBBLE_INLINE bool is_outlier(const QuantizedX& q, float x) { return q.threshold > 0 && magnitude(x) >= q.threshold; }

/// One row of x rounded to fp16, in this thread's memory.
const float* round_input_row(const QuantizedX& q, int64_t row) {
  auto* x = static_cast<float*>(scratch(Scratch::row, q.input->cols * 4));
  round_row(q.input->x_f32() + row * q.input->cols, q.input->cols, Rounding::f16, x);
  return x;
}

void measure_row(void* context, int64_t row, int) {
  const auto& q = *static_cast<const QuantizedX*>(context);
  const float* x = round_input_row(q, row);
  // Magnitudes compare as the integers that hold them; NaN lies above infinity and is neither maximum nor outlier.
  constexpr int32_t kInfinity = 0x7f800000;
  const int32_t limit = q.threshold > 0 ? __builtin_bit_cast(int32_t, q.threshold) : kInfinity + 1;
  int32_t largest = 0, outliers = 0;
  for (int64_t k = 0; k < q.input->cols; ++k) {
    const int32_t bits = __builtin_bit_cast(int32_t, x[k]) & 0x7fffffff;
    const int32_t ordinary = bits >= limit || bits > kInfinity ? 0 : bits;
    outliers += bits >= limit && bits <= kInfinity ? 1 : 0;
    largest = ordinary > largest ? ordinary : largest;
  }
  q.absmax[row] = __builtin_bit_cast(float, largest);
  if (outliers == 0) return;
  for (int64_t k = 0; k < q.input->cols; ++k)  // rows are measured in parallel
    if (is_outlier(q, x[k])) __atomic_store_n(&q.is_outlier[k], uint8_t{1}, __ATOMIC_RELAXED);
}

/// An element of an outlier column is not quantized; batch-invariantly, only if its own row makes it one.
NIBBLE_INLINE bool is_set_apart(const QuantizedX& q, int64_t column, float x) {
  return q.is_outlier[column] && (!q.input->batch_invariant || is_outlier(q, x));
}

/// Codes of x * scale, half to even; NaN becomes 0 and magnitudes stop at 127. Adding 1.5 * 2^23 rounds.
void quantize_run(const float* x, int64_t count, float scale, StepInt8::Element* codes) {
  for (int64_t k = 0; k < count; ++k) {
    float value = x[k] * scale;
    value = value == value ? value : 0.0f;
    value = value > 127.0f ? 127.0f : value;
    value = value < -127.0f ? -127.0f : value;
    codes[k] = static_cast<StepInt8::Element>(__builtin_bit_cast(int32_t, value + 0x1.8p23f) - 0x4b400000);
  }
}

/// Row `row` of the slab to dwords `stride` apart, and its outliers.
void quantize_row(const QuantizedX& q, int64_t row, uint32_t* out, int64_t stride) {
  constexpr int64_t kPiece = 1024;
  const int64_t cols = q.input->cols;
  const float* x = round_input_row(q, q.first + row);
  const float absmax = q.absmax[q.first + row];
  int32_t sum = 0;
  int64_t o = 0;
  for (int64_t begin = 0; begin < cols; begin += kPiece) {
    StepInt8::Element codes[kPiece];
    const int64_t count = smaller(kPiece, cols - begin);
    const int64_t dwords = (count + StepInt8::kPerDword - 1) / StepInt8::kPerDword;
    quantize_run(x + begin, count, absmax > 0 ? 127.0f * (1.0f / absmax) : 0.0f, codes);
    for (; o < q.outliers && q.columns[o] < begin + count; ++o)
      if (is_set_apart(q, q.columns[o], x[q.columns[o]])) codes[q.columns[o] - begin] = 0;
    for (int64_t k = 0; k < count; ++k) sum += codes[k];
    for (int64_t k = count; k < dwords * StepInt8::kPerDword; ++k) codes[k] = 0;
    scatter_dwords<StepInt8>(codes, dwords, stride, out + begin / StepInt8::kPerDword * stride);
  }
  q.sum[row] = sum;
  for (o = 0; o < q.outliers; ++o) {
    const int64_t column = q.columns[o];
    const bool apart = is_set_apart(q, column, x[column]);
    q.outlier_x[row * q.outliers + o] =
        apart ? outlier_value(q.input->compute, q.input->x_f32()[(q.first + row) * cols + column]) : 0;
  }
}

void quantize_tile(void* context, int64_t tile, int) {
  const auto& q = *static_cast<const QuantizedX*>(context);
  const int64_t begin = tile_begin(q.rows, tile), rows = tile_begin(q.rows, tile + 1) - begin;
  for (int64_t r = 0; r < rows; ++r) quantize_row(q, begin + r, q.packed + begin * q.depth + r, rows);
}

NIBBLE_INLINE float scaled(const QuantizedX& q, int64_t row, int32_t sum, float absmax) {
  return static_cast<float>(sum) * (q.absmax[row] * (1.0f / (127.0f * 127.0f)) * absmax);
}
NIBBLE_INLINE float outlier_weight(const QuantizedX& q, int8_t code, float absmax) {
  return round_to(q.input->compute, static_cast<float>(code) * absmax * (1.0f / 127.0f));
}

struct SourceInt8 {
  using Step = StepInt8;
  using Element = Step::Element;
  const MatmulInt8Job* jobs;
  const QuantizedX* x;

  int64_t rows(int64_t job) const { return jobs[job].rows; }

  void fill(int64_t job, int64_t row, int64_t begin, int64_t count, Element* out) const {
    const int8_t* w = jobs[job].w + row * x->input->cols + begin;
    int64_t i = 0;
#if defined(NIBBLE_AVX512)
    for (; i + 64 <= count; i += 64) _mm512_storeu_si512(out + i, load_int8(w + i));
#endif
    for (; i < count; ++i) out[i] = static_cast<Element>(Step::kOffset ? w[i] ^ -128 : w[i]);
  }

  NIBBLE_INLINE void prefetch(int64_t job, int64_t row, int64_t begin, int64_t count) const {
    prefetch_bytes(jobs[job].w + row * x->input->cols + begin, count);
  }

  void finish(int64_t job, int64_t row, int64_t count, int64_t first_x, int64_t m, const int32_t* c) const {
    const auto& j = jobs[job];
    auto* outlier_w = static_cast<float*>(scratch(Scratch::outliers, (x->outliers + 2) * kPanelRows * 4));
    gather_outliers(j, row, count, outlier_w);
    float* values = outlier_w + x->outliers * kPanelRows;
    for (int64_t i = 0; i < m; ++i) {
      const int32_t correction = Step::kOffset * x->sum[i];
      for (int64_t n = 0; n < count; ++n)
        values[n] = scaled(*x, first_x + i, c[i * kPanelRows + n] - correction, j.absmax[row + n]);
      const float* outlier_x = x->outlier_x + i * x->outliers;
      for (int64_t o = 0; o < x->outliers; ++o)
        for (int64_t n = 0; n < count; ++n) values[n] += outlier_x[o] * outlier_w[o * kPanelRows + n];
      for (int64_t n = 0; n < count; ++n) put(j.out, first_x + i, row + n, values[n]);
    }
  }

  /// (outliers, kPanelRows): the dequantized weights of the outlier columns.
  void gather_outliers(const MatmulInt8Job& j, int64_t row, int64_t count, float* out) const {
    for (int64_t n = 0; n < count; ++n) {
      const int8_t* w = j.w + (row + n) * x->input->cols;
      for (int64_t o = 0; o < x->outliers; ++o)
        out[o * kPanelRows + n] = outlier_weight(*x, w[x->columns[o]], j.absmax[row + n]);
    }
  }
};

#if defined(NIBBLE_HAS_INT8_GEMV)
/// Few rows of x. Integer sums are exact and the rest happens in the panels' order: the bits are the same.
struct GemvInt8 {
  const QuantizedX* x;
  RowUnits<MatmulInt8Job> units;

  template <int R, int M>
  void run_rows(const MatmulInt8Job& job, int64_t n, int64_t step, int64_t first) const {
    int32_t sums[R][M];
    const int64_t cols = x->input->cols;
    const int8_t* w = job.w + n * cols;
    dot_int8_rows<R, M>(w, step * cols, cols, reinterpret_cast<const StepInt8::Element*>(x->packed + first * x->depth),
                        x->depth * StepInt8::kPerDword, sums);
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < M; ++j) {
        const int64_t i = first + j;
        const float absmax = job.absmax[n + r * step];
        float value = scaled(*x, i, sums[r][j] - StepInt8::kOffset * x->sum[i], absmax);
        for (int64_t o = 0; o < x->outliers; ++o)
          value += x->outlier_x[i * x->outliers + o] * outlier_weight(*x, w[r * step * cols + x->columns[o]], absmax);
        put(job.out, i, n + r * step, value);
      }
  }

  static void task(void* context, int64_t index, int) {
    const auto& gemv = *static_cast<const GemvInt8*>(context);
    int64_t begin, end;
    const MatmulInt8Job& job = gemv.units.find(index, begin, end);
    const int64_t step = (end - begin) / 4;  // four long streams
    for_few_rows(gemv.x->input->m, [&](auto rows, int64_t i) {
      constexpr int M = decltype(rows)::kRows;
      for (int64_t n = 0; n < step; ++n) gemv.run_rows<4, M>(job, begin + n, step, i);
      for (int64_t n = begin + 4 * step; n < end; ++n) gemv.run_rows<1, M>(job, n, 1, i);
    });
  }
};

void run_gemv(const Context& context, QuantizedX& q, const MatmulInt8Job* jobs, int64_t count) {
  const int64_t m = q.input->m, cols = q.input->cols;
  q.rows = m;
  q.depth = (cols + kInt8Columns - 1) / kInt8Columns * kLanes;
  q.packed = static_cast<uint32_t*>(scratch(Scratch::shared_input, m * (q.depth + q.outliers) * 4));
  q.outlier_x = reinterpret_cast<float*>(q.packed + m * q.depth);
  for (int64_t i = 0; i < m; ++i) {
    uint32_t* out = q.packed + i * q.depth;
    const int64_t used = cols / StepInt8::kPerDword;  // the last dword may be short: cleared, then written
    std::memset(out + used, 0, static_cast<size_t>(q.depth - used) * 4);
    quantize_row(q, i, out, 1);
  }
  GemvInt8 gemv{&q, share_rows(context, jobs, count, cols, 8)};
  run(context, gemv.units.total(), GemvInt8::task, &gemv);
}
#endif

/// Row maxima and the call's outlier columns.
void measure(const Context& context, QuantizedX& q) {
  std::memset(q.is_outlier, 0, static_cast<size_t>(q.input->cols));
  if (q.input->m == 1)
    measure_row(&q, 0, 0);
  else
    run(context, q.input->m, measure_row, &q);
  q.outliers = 0;
  if (q.threshold <= 0) return;
  for (int64_t k = 0; k < q.input->cols; ++k)
    if (q.is_outlier[k]) q.columns[q.outliers++] = static_cast<int32_t>(k);
}

}  // namespace

void matmul_int8(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                 int64_t count) {
  QuantizedX q{};
  q.input = &input;
  q.threshold = threshold;
  auto* shared =
      static_cast<float*>(scratch(Scratch::shared_rows, (input.m + kSlabRows + input.cols) * 4 + input.cols));
  q.absmax = shared;
  q.sum = reinterpret_cast<int32_t*>(shared + input.m);
  q.columns = q.sum + kSlabRows;
  q.is_outlier = reinterpret_cast<uint8_t*>(q.columns + input.cols);
  measure(context, q);
#if defined(NIBBLE_HAS_INT8_GEMV)
  if (input.m <= kInt8GemvRows) return run_gemv(context, q, jobs, count);
#endif

  const SourceInt8 source{jobs, &q};
  for (int64_t first = 0; first < input.m; first += kSlabRows) {
    PanelGemm<SourceInt8> gemm{&source, count, input.cols, nullptr, first, smaller(kSlabRows, input.m - first)};
    q.first = first;
    q.rows = gemm.m;
    q.depth = gemm.depth();
    q.packed = static_cast<uint32_t*>(scratch(Scratch::shared_input, gemm.m * (gemm.depth() + q.outliers) * 4));
    q.outlier_x = reinterpret_cast<float*>(q.packed + gemm.m * gemm.depth());
    run(context, tile_count(gemm.m), quantize_tile, &q);
    gemm.x = q.packed;
    run(context, gemm.panel_count(), PanelGemm<SourceInt8>::task, &gemm);
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
