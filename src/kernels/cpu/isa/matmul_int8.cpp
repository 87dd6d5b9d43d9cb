// matmul_int8: LLM.int8() with int32 accumulation, outlier columns apart in fp32.
#include "kernels/cpu/isa/entries.h"
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
NIBBLE_INLINE bool is_outlier(const QuantizedX& q, float x) { return q.threshold > 0 && magnitude(x) >= q.threshold; }

/// Half to even for |x| < 2^22; NaN becomes 0.
NIBBLE_INLINE int32_t round_to_int(float x) {
  if (!(magnitude(x) < 0x1p22f)) return 0;
  const float shifted = x + 0x1.8p23f;
  return static_cast<int32_t>(__builtin_bit_cast(uint32_t, shifted) - 0x4b400000u);
}

void measure_row(void* context, int64_t row, int) {
  const auto& q = *static_cast<const QuantizedX*>(context);
  const float* x = q.input->x + row * q.input->cols;
  float absmax = 0;
  for (int64_t k = 0; k < q.input->cols; ++k) {
    const float value = round_f16(x[k]);
    if (is_outlier(q, value)) {
      __atomic_store_n(&q.is_outlier[k], uint8_t{1}, __ATOMIC_RELAXED);  // rows are measured in parallel
    } else if (magnitude(value) > absmax) {
      absmax = magnitude(value);
    }
  }
  q.absmax[row] = absmax;
}

/// An element of an outlier column is not quantized; batch-invariantly, only if its own row makes it one.
NIBBLE_INLINE bool is_set_apart(const QuantizedX& q, int64_t column, float x) {
  return q.is_outlier[column] && (!q.input->batch_invariant || is_outlier(q, x));
}

void quantize_tile(void* context, int64_t tile, int) {
  const auto& q = *static_cast<const QuantizedX*>(context);
  const int64_t begin = tile_begin(q.rows, tile), rows = tile_begin(q.rows, tile + 1) - begin;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = q.first + begin + r;
    const float* x = q.input->x + row * q.input->cols;
    const float scale = q.absmax[row] > 0 ? 127.0f / q.absmax[row] : 0.0f;
    int32_t sum = 0;
    for (int64_t k = 0; k < q.depth; ++k) {
      StepInt8::Element dword[StepInt8::kPerDword] = {};
      for (int64_t j = 0; j < StepInt8::kPerDword; ++j) {
        const int64_t column = k * StepInt8::kPerDword + j;
        if (column >= q.input->cols) break;
        const float value = round_f16(x[column]);
        const int32_t code = is_set_apart(q, column, value) ? 0 : round_to_int(value * scale);
        dword[j] = static_cast<StepInt8::Element>(code);
        sum += code;
      }
      std::memcpy(q.packed + begin * q.depth + k * rows + r, dword, 4);
    }
    q.sum[begin + r] = sum;
    for (int64_t o = 0; o < q.outliers; ++o) {
      const float value = x[q.columns[o]];
      q.outlier_x[(begin + r) * q.outliers + o] =
          is_set_apart(q, q.columns[o], round_f16(value)) ? round_to(q.input->compute, value) : 0.0f;
    }
  }
}

struct SourceInt8 {
  using Step = StepInt8;
  using Element = Step::Element;
  const MatmulInt8Job* jobs;
  const QuantizedX* x;

  int64_t rows(int64_t job) const { return jobs[job].rows; }

  void fill(int64_t job, int64_t row, int64_t begin, int64_t count, Element* out) const {
    const int8_t* w = jobs[job].w + row * x->input->cols + begin;
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Element>(w[i] ^ (Step::kOffset ? 0x80 : 0));
  }

  void finish(int64_t job, int64_t row, int64_t count, int64_t first_x, int64_t m, const int32_t* c) const {
    const auto& j = jobs[job];
    auto* outlier_w = static_cast<float*>(scratch(Scratch::outliers, (x->outliers + 2) * kPanelRows * 4));
    gather_outliers(j, row, count, outlier_w);
    float* values = outlier_w + x->outliers * kPanelRows;
    for (int64_t i = 0; i < m; ++i) {
      const float x_scale = x->absmax[first_x + i] * (1.0f / (127.0f * 127.0f));
      const int32_t correction = Step::kOffset * x->sum[i];
      for (int64_t n = 0; n < count; ++n)
        values[n] = static_cast<float>(c[i * kPanelRows + n] - correction) * (x_scale * j.absmax[row + n]);
      const float* outlier_x = x->outlier_x + i * x->outliers;
      for (int64_t o = 0; o < x->outliers; ++o)
        for (int64_t n = 0; n < count; ++n) values[n] += outlier_x[o] * outlier_w[o * kPanelRows + n];
      float* y = j.out.y + (first_x + i) * j.out.y_stride + row;
      for (int64_t n = 0; n < count; ++n) {
        const float value = j.out.bias ? values[n] + j.out.bias[row + n] : values[n];
        y[n] = j.out.accumulate ? y[n] + value : value;
      }
    }
  }

  /// (outliers, kPanelRows): the dequantized weights of the outlier columns.
  void gather_outliers(const MatmulInt8Job& j, int64_t row, int64_t count, float* out) const {
    for (int64_t n = 0; n < count; ++n) {
      const int8_t* w = j.w + (row + n) * x->input->cols;
      for (int64_t o = 0; o < x->outliers; ++o)
        out[o * kPanelRows + n] =
            round_to(x->input->compute, static_cast<float>(w[x->columns[o]]) * j.absmax[row + n] * (1.0f / 127.0f));
    }
  }
};

/// Row maxima and the call's outlier columns.
void measure(const Context& context, QuantizedX& q) {
  std::memset(q.is_outlier, 0, static_cast<size_t>(q.input->cols));
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
