// y = x . w^T by panels: a few rows of w are brought to one layout in cache, then met by tiles of rows of x.
//
// Everything is counted in dwords: one fp32, two bf16 or four int8 values of a row. Lanes of a vector are rows of w,
// so nothing is reduced across lanes, and a row of x is summed in the same order whatever tile it falls in.
#pragma once

#include "base/thread_pool.h"
#include "kernels/cpu/isa/transpose.h"
#include "kernels/cpu/isa/vector.h"
#include "kernels/cpu/scratch.h"
#include "kernels/kernels.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

inline constexpr int64_t kDepthChunk = 512;  // dwords of a panel that are packed at a time: 64 KB, in the L2 cache
inline constexpr int64_t kStageDepth = 64;   // dwords of its rows that are decoded at a time
inline constexpr int64_t kSlabRows = 512;    // rows of x that are packed at a time

NIBBLE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
NIBBLE_INLINE int64_t tile_count(int64_t m) { return (m + kTileRows - 1) / kTileRows; }
NIBBLE_INLINE int64_t tile_begin(int64_t m, int64_t tile) { return m * tile / tile_count(m); }

/// c (MR, kPanelRows) += x . panel. x: (depth, MR) dwords, panel: (depth, kPanelRows) dwords.
template <class Step, int MR>
static void multiply_tile(const uint32_t* x, const uint32_t* panel, int64_t depth, typename Step::Lane* c) {
  typename Step::Vec sum[MR][2];
  NIBBLE_UNROLL
  for (int i = 0; i < MR; ++i) sum[i][0] = sum[i][1] = Step::zero();
  for (int64_t k = 0; k < depth; ++k, x += MR, panel += kPanelRows) {
    const auto w0 = Step::load(panel);
    const auto w1 = Step::load(panel + kLanes);
    NIBBLE_UNROLL
    for (int i = 0; i < MR; ++i) {
      const auto xi = Step::broadcast(x + i);
      sum[i][0] = Step::step(sum[i][0], w0, xi);
      sum[i][1] = Step::step(sum[i][1], w1, xi);
    }
  }
  NIBBLE_UNROLL
  for (int i = 0; i < MR; ++i) {
    Step::add_to(c + i * kPanelRows, sum[i][0]);
    Step::add_to(c + i * kPanelRows + kLanes, sum[i][1]);
  }
}

template <class Step>
static void multiply_tile(int64_t rows, const uint32_t* x, const uint32_t* panel, int64_t depth,
                          typename Step::Lane* c) {
  using Tile = void (*)(const uint32_t*, const uint32_t*, int64_t, typename Step::Lane*);
  static constexpr Tile kTiles[] = {
    multiply_tile<Step, 1>,
    multiply_tile<Step, 2>,
    multiply_tile<Step, 3>,
    multiply_tile<Step, 4>,
    multiply_tile<Step, 5>,
    multiply_tile<Step, 6>,
#if defined(NIBBLE_AVX512)
    multiply_tile<Step, 7>,
    multiply_tile<Step, 8>,
    multiply_tile<Step, 9>,
    multiply_tile<Step, 10>,
    multiply_tile<Step, 11>,
    multiply_tile<Step, 12>,
#endif
  };
  kTiles[rows - 1](x, panel, depth, c);
}

/// One call. Source says what a row of w is:
///   using Step; int64_t rows(int64_t job);
///   void fill(job, row, begin, count, Step::Element* out): elements [begin, begin + count) of a row of w
///   void prefetch(job, row, begin, count): asks for the same
///   void finish(job, first_row, row_count, first_x, m, const Step::Lane* c): c (m, kPanelRows) to y
template <class Source>
struct PanelGemm {
  using Step = typename Source::Step;
  using Element = typename Step::Element;
  using Lane = typename Step::Lane;

  const Source* source;
  int64_t jobs;
  int64_t cols;
  const uint32_t* x;  // packed slab: tile after tile, each (depth, rows of the tile)
  int64_t first_x, m;

  int64_t depth() const { return (cols + Step::kPerDword - 1) / Step::kPerDword; }

  static int64_t panels(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

  int64_t panel_count() const {
    int64_t count = 0;
    for (int64_t j = 0; j < jobs; ++j) count += panels(source->rows(j));
    return count;
  }

  /// Decodes dwords [k, k + count) of kPanelRows rows, kStageDepth at a time: what is transposed lies in the L1 cache.
  void fill_panel(int64_t job, int64_t row, int64_t row_count, int64_t k, int64_t count, uint32_t* stage,
                  uint32_t* panel) const {
    for (int64_t done = 0; done < count; done += kStageDepth) {
      const int64_t begin = (k + done) * Step::kPerDword, depth = smaller(kStageDepth, count - done);
      const int64_t elements = smaller(depth * Step::kPerDword, cols - begin);
      const int64_t next = smaller(elements, cols - begin - elements);
      for (int64_t r = 0; r < row_count; ++r) source->prefetch(job, row + r, begin + elements, next);
      for (int64_t r = 0; r < kPanelRows; ++r) {
        auto* out = reinterpret_cast<Element*>(stage + r * kStageDepth);
        if (r < row_count) source->fill(job, row + r, begin, elements, out);
        const int64_t filled = r < row_count ? elements : 0;
        std::memset(out + filled, 0, static_cast<size_t>(depth * Step::kPerDword - filled) * sizeof(Element));
      }
      transpose_panel(stage, kStageDepth, depth, panel + done * kPanelRows);
    }
  }

  void run_panel(int64_t job, int64_t row) const {
    const int64_t row_count = smaller(kPanelRows, source->rows(job) - row);
    const int64_t stage_size = kPanelRows * kStageDepth, chunk = kPanelRows * kDepthChunk;
    auto* stage = static_cast<uint32_t*>(scratch(Scratch::panel, (stage_size + chunk + m * kPanelRows) * 4));
    uint32_t* panel = stage + stage_size;
    auto* c = reinterpret_cast<Lane*>(panel + chunk);
    std::memset(c, 0, static_cast<size_t>(m * kPanelRows) * sizeof(Lane));
    for (int64_t k = 0; k < depth(); k += kDepthChunk) {
      const int64_t count = smaller(kDepthChunk, depth() - k);
      fill_panel(job, row, row_count, k, count, stage, panel);
      const bool is_last = k + count == depth();
      for (int64_t t = 0; t < tile_count(m); ++t) {
        prefetch_rows(job, is_last ? row + kPanelRows : row, is_last ? 0 : (k + count) * Step::kPerDword, t);
        const int64_t begin = tile_begin(m, t), rows = tile_begin(m, t + 1) - begin;
        multiply_tile<Step>(rows, x + begin * depth() + k * rows, panel, count, c + begin * kPanelRows);
      }
    }
    source->finish(job, row, row_count, first_x, m, c);
  }

  /// Asks for what is decoded next, a share with each tile: the rows of a chunk are too short for the processor to see
  /// them coming.
  NIBBLE_INLINE void prefetch_rows(int64_t job, int64_t row, int64_t begin, int64_t tile) const {
    const int64_t share = (kPanelRows + tile_count(m) - 1) / tile_count(m);
    const int64_t end = smaller(smaller((tile + 1) * share, kPanelRows), source->rows(job) - row);
    const int64_t elements = smaller(kDepthChunk * Step::kPerDword, cols - begin);
    for (int64_t r = tile * share; r < end; ++r) source->prefetch(job, row + r, begin, elements);
  }

  static void task(void* context, int64_t index, int) {
    const auto* gemm = static_cast<const PanelGemm*>(context);
    for (int64_t job = 0; job < gemm->jobs; ++job) {
      const int64_t count = panels(gemm->source->rows(job));
      if (index < count) return gemm->run_panel(job, index * kPanelRows);
      index -= count;
    }
  }
};

NIBBLE_INLINE void run(const Context& context, int64_t count, ThreadPool::Task task, void* argument) {
  if (context.pool) return context.pool->run(count, task, argument);
  for (int64_t i = 0; i < count; ++i) task(argument, i, 0);
}

/// Writes elements of one row as dwords `stride` apart, zero behind the last.
template <class Step>
NIBBLE_INLINE void scatter_dwords(const typename Step::Element* row, int64_t depth, int64_t stride, uint32_t* out) {
  for (int64_t k = 0; k < depth; ++k) std::memcpy(out + k * stride, row + k * Step::kPerDword, 4);
}

#if defined(NIBBLE_AVX512)
/// `rows` (at most kTileRows) rows of x, `stride` apart, rounded to bf16: pair k of row r goes to out[k * rows + r].
[[maybe_unused]] static void pack_pairs(const float* x, int64_t stride, int64_t cols, int64_t rows, uint32_t* out) {
  alignas(64) uint32_t stage[16 * 16] = {}, turned[16 * 16];
  const int64_t depth = (cols + 1) / 2;
  for (int64_t k = 0; k < depth; k += 16) {
    const int64_t count = smaller(32, cols - 2 * k), pairs = smaller(16, depth - k);
    const int64_t low = smaller(count, 16), high = count - low;
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = x + r * stride + 2 * k;
      const F32 first = load_some(from, low), second = high > 0 ? load_some(from + 16, high) : set1(0);
      _mm512_store_si512(stage + 16 * r, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
    transpose_square(stage, 16, turned, 16);
    uint32_t* to = out + k * rows;
    // Sixteen dwords at a time run into the next pair's place, which is written later; the last pairs must not.
    int64_t j = 0;
    for (; j < pairs && (k + j) * rows + 16 <= depth * rows; ++j)
      _mm512_storeu_si512(to + j * rows, _mm512_load_si512(turned + 16 * j));
    for (; j < pairs; ++j) std::memcpy(to + j * rows, turned + 16 * j, static_cast<size_t>(rows) * sizeof(uint32_t));
  }
}
#endif

template <class Step>
struct PackX {
  using Element = typename Step::Element;
  static constexpr int64_t kPiece = 256;  // dwords

  const MatmulInput* input;
  int64_t stride;  // of rows of x
  Rounding rounding;
  int64_t first, m, depth;
  uint32_t* out;

  static void task(void* context, int64_t tile, int) {
    const auto& p = *static_cast<const PackX*>(context);
    const int64_t begin = tile_begin(p.m, tile), rows = tile_begin(p.m, tile + 1) - begin;
    const float* first_row = p.input->x_f32() + (p.first + begin) * p.stride;
#if defined(NIBBLE_AVX512)
    if constexpr (Step::kPerDword == 2)
      return pack_pairs(first_row, p.stride, p.input->cols, rows, p.out + begin * p.depth);
#endif
    Element row[kPiece * Step::kPerDword];
    for (int64_t r = 0; r < rows; ++r) {
      const float* x = first_row + r * p.stride;
      for (int64_t k = 0; k < p.depth; k += kPiece) {
        const int64_t column = k * Step::kPerDword;
        const int64_t count = smaller(kPiece * Step::kPerDword, p.input->cols - column);
        round_row(x + column, count, p.rounding, row);
        if (count % Step::kPerDword) row[count] = 0;
        scatter_dwords<Step>(row, smaller(kPiece, p.depth - k), rows, p.out + begin * p.depth + k * rows + r);
      }
    }
  }
};

/// y = x . w^T for a floating-point source.
template <class Source>
static void run_float_gemm(const Context& context, const MatmulInput& input, Rounding rounding, const Source& source,
                           int64_t jobs) {
  using Step = typename Source::Step;
  for (int64_t first = 0; first < input.m; first += kSlabRows) {
    PanelGemm<Source> gemm{&source, jobs, input.cols, nullptr, first, smaller(kSlabRows, input.m - first)};
    auto* x = static_cast<uint32_t*>(scratch(Scratch::shared_input, gemm.m * gemm.depth() * 4));
    PackX<Step> pack{&input, input.cols, rounding, first, gemm.m, gemm.depth(), x};
    run(context, tile_count(gemm.m), PackX<Step>::task, &pack);
    gemm.x = x;
    run(context, gemm.panel_count(), PanelGemm<Source>::task, &gemm);
  }
}

/// y[i, n] (=, +=) value + bias[n].
NIBBLE_INLINE void put(const MatmulOutput& out, int64_t i, int64_t n, float value) {
  float* y = out.y_f32() + i * out.y_stride + n;
  if (out.bias) value += out.bias[n];
  *y = out.accumulate ? *y + value : value;
}

/// y (=, +=) c + bias for rows [first_x, first_x + m) and columns [row, row + count).
[[maybe_unused]] static void store_float(const MatmulOutput& out, int64_t row, int64_t count, int64_t first_x,
                                         int64_t m, const float* c) {
  for (int64_t i = 0; i < m; ++i) {
    float* y = out.y_f32() + (first_x + i) * out.y_stride + row;
    const float* values = c + i * kPanelRows;
    int64_t n = 0;
    for (; n + kLanes <= count; n += kLanes) {
      F32 value = load(values + n);
      if (out.bias) value += load(out.bias + row + n);
      store(y + n, out.accumulate ? load(y + n) + value : value);
    }
    for (; n < count; ++n) put(out, first_x + i, row + n, values[n]);
  }
}

/// What compute type `compute` rounds to.
NIBBLE_INLINE Rounding rounding_of(DType compute) {
  return compute == DType::bf16 ? Rounding::bf16 : compute == DType::f16 ? Rounding::f16 : Rounding::none;
}

/// What the floating-point sources share; they add fill and prefetch.
template <class StepT, class Job>
struct FloatSource {
  using Step = StepT;
  using Element = typename Step::Element;
  const Job* jobs;
  int64_t cols;
  Rounding rounding;

  int64_t rows(int64_t job) const { return jobs[job].rows; }
  void finish(int64_t job, int64_t row, int64_t count, int64_t first_x, int64_t m, const float* c) const {
    store_float(jobs[job].out, row, count, first_x, m, c);
  }
};

/// Source<Step> over all of x, with the step that suits `compute`.
template <template <class> class Source, class Job>
static void run_panels(const Context& context, const MatmulInput& input, const Job* jobs, int64_t count) {
  const Rounding rounding = rounding_of(input.compute);
#if defined(NIBBLE_AVX512)
  if (rounding == Rounding::bf16)
    return run_float_gemm(context, input, rounding, Source<StepBf16>{{jobs, input.cols, rounding}}, count);
#endif
  // fp16 rounds x alone: its products are made in fp32.
  const Rounding w_rounding = rounding == Rounding::bf16 ? Rounding::bf16 : Rounding::none;
  run_float_gemm(context, input, rounding, Source<StepF32>{{jobs, input.cols, w_rounding}}, count);
}

/// The work items of kernels that read each row of w once: runs of rows.
template <class Job>
struct RowUnits {
  const Job* jobs;
  int64_t count;
  int64_t unit_rows;

  int64_t units(int64_t job) const { return (jobs[job].rows + unit_rows - 1) / unit_rows; }
  int64_t total() const {
    int64_t sum = 0;
    for (int64_t j = 0; j < count; ++j) sum += units(j);
    return sum;
  }
  /// The job of item `index`, and its rows.
  const Job& find(int64_t index, int64_t& begin, int64_t& end) const {
    int64_t j = 0;
    for (; index >= units(j); ++j) index -= units(j);
    begin = index * unit_rows;
    end = smaller(begin + unit_rows, jobs[j].rows);
    return jobs[j];
  }
};

/// Calls body(a number M of 1 to 4 as a type, i) for rows [i, i + M) of x until all m are done.
template <int M>
struct RowCount {
  static constexpr int kRows = M;
};
template <class Body>
NIBBLE_INLINE void for_few_rows(int64_t m, Body&& body) {
  int64_t i = 0;
  for (; i + 4 <= m; i += 4) body(RowCount<4>(), i);
  if (m - i == 3) body(RowCount<3>(), i);
  if (m - i == 2) body(RowCount<2>(), i);
  if (m - i == 1) body(RowCount<1>(), i);
}

/// Rows of w that a thread takes at a time: 8 to 512 KB, about `units` of them a thread.
template <class Job>
static RowUnits<Job> share_rows(const Context& context, const Job* jobs, int64_t count, int64_t row_bytes,
                                int64_t units) {
  int64_t rows = 0;
  for (int64_t j = 0; j < count; ++j) rows += jobs[j].rows;
  const int64_t threads = context.pool ? context.pool->threads() : 1;
  const int64_t share = (rows * row_bytes + units * threads - 1) / (units * threads);
  const int64_t bytes = share < (8 << 10) ? 8 << 10 : smaller(share, 512 << 10);
  return {jobs, count, 4 * ((bytes + 4 * row_bytes - 1) / (4 * row_bytes))};
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
