// dx = dy . w in bf16: panels of w, in which two of its rows lie interleaved, are met by tiles of rows of dy.
//
// Lanes are columns of w, and a dword holds a column's elements of two neighbouring rows: what the bf16 step takes
// without any transposition. Sums of an element of dx run over the rows of w in ascending order.
#pragma once

#include "kernels/cpu/isa/decode_4bit.h"
#include "kernels/cpu/isa/decode_range.h"
#include "kernels/cpu/isa/panel_gemm.h"

#if defined(NIBBLE_AVX512)

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Pieces of kPanelRows elements of a row of a weight, as bf16.
struct WeightPieces {
  WeightView w;
  int64_t rows, cols;
  bool is_aligned = false;  // 4-bit: no piece crosses blocks or bytes
  int shift = 0;            // log2 of such a block

  WeightPieces(const WeightView& view, int64_t row_count, int64_t col_count)
      : w(view), rows(row_count), cols(col_count) {
    if (w.kind != WeightView::Kind::four_bit) return;
    const bool is_power = (w.block & (w.block - 1)) == 0;
    is_aligned = is_power && w.block >= kPanelRows && cols % kPanelRows == 0;
    if (is_aligned) shift = __builtin_ctzll(static_cast<uint64_t>(w.block));
  }

  /// Columns [col, col + count) of a row, zeros behind them.
  NIBBLE_INLINE __m512i get(int64_t row, int64_t col, int64_t count) const {
    if (row >= rows) return _mm512_setzero_si512();
    const int64_t at = row * cols + col;
    if (is_aligned) return get_4bit(at);
    if (w.kind == WeightView::Kind::dense && w.dtype == DType::bf16) {
      const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
      return _mm512_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(w.data) + at);
    }
    return get_any(row, col, count);
  }

  NIBBLE_INLINE __m512i get_4bit(int64_t at) const {
    const float absmax = block_absmax_of(*w.absmax, at >> shift);
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(w.code_book), _mm512_set1_ps(absmax));
    const __m512i table = _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(scaled));
    const auto* p = static_cast<const uint8_t*>(w.data) + at / 2;
    const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i pairs = _mm512_or_si512(_mm512_srli_epi32(code, 4), _mm512_slli_epi32(code, 16));
    return _mm512_permutexvar_epi16(pairs, table);
  }

  __m512i get_any(int64_t row, int64_t col, int64_t count) const {
    alignas(64) float values[kPanelRows] = {};
    decode_range(w, cols, row, col, count, values);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(values + kLanes), _mm512_load_ps(values));
  }

  NIBBLE_INLINE void prefetch(int64_t row, int64_t col) const {
    const int64_t at = row * cols + col;
    if (w.kind == WeightView::Kind::four_bit)
      __builtin_prefetch(static_cast<const uint8_t*>(w.data) + at / 2);
    else if (w.kind == WeightView::Kind::dense)
      prefetch_bytes(static_cast<const char*>(w.data) + at * size_of(w.dtype), kPanelRows * size_of(w.dtype));
  }
};

/// One call over a slab of rows of dy. Items are groups of panels, so that a chunk of dy serves several from the cache.
struct PairGemm {
  const InputGradientArgs* args;
  WeightPieces pieces;
  const uint32_t* dy;  // packed: tile after tile, each (depth, rows of the tile) pairs
  int64_t first, m;
  int64_t group;  // panels of an item

  int64_t depth() const { return (args->rows + 1) / 2; }
  int64_t panels() const { return (args->cols + kPanelRows - 1) / kPanelRows; }

  void fill(int64_t col, int64_t count, int64_t k, int64_t pairs, uint32_t* panel) const {
    alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t i = 0; i < pairs; ++i, panel += kPanelRows) {
      const __m512i even = pieces.get(2 * (k + i), col, count), odd = pieces.get(2 * (k + i) + 1, col, count);
      _mm512_store_si512(panel, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_store_si512(panel + kLanes, _mm512_permutex2var_epi16(even, high, odd));
    }
  }

  /// Asks for what is decoded next, a share with each tile.
  NIBBLE_INLINE void prefetch(int64_t col, int64_t k, int64_t pairs, int64_t tile) const {
    if (col >= args->cols) return;
    const int64_t rows = smaller(2 * pairs, args->rows - 2 * k), share = (rows + tile_count(m) - 1) / tile_count(m);
    for (int64_t r = tile * share; r < smaller(rows, (tile + 1) * share); ++r) pieces.prefetch(2 * k + r, col);
  }

  void run_group(int64_t begin, int64_t end) const {
    const int64_t chunk = kPanelRows * kDepthChunk, sums = m * kPanelRows;
    auto* panel = static_cast<uint32_t*>(scratch(Scratch::panel, (chunk + (end - begin) * sums) * 4));
    auto* c = reinterpret_cast<float*>(panel + chunk);
    std::memset(c, 0, static_cast<size_t>((end - begin) * sums) * sizeof(float));
    for (int64_t k = 0; k < depth(); k += kDepthChunk) {
      const int64_t pairs = smaller(kDepthChunk, depth() - k);
      for (int64_t p = begin; p < end; ++p) {
        fill(p * kPanelRows, smaller(kPanelRows, args->cols - p * kPanelRows), k, pairs, panel);
        const bool is_last = p + 1 == end;
        const int64_t next = is_last ? k + pairs : k;
        for (int64_t t = 0; t < tile_count(m); ++t) {
          prefetch((is_last ? begin : p + 1) * kPanelRows, next, smaller(kDepthChunk, depth() - next), t);
          const int64_t from = tile_begin(m, t), rows = tile_begin(m, t + 1) - from;
          multiply_tile<StepBf16>(rows, dy + from * depth() + k * rows, panel, pairs,
                                  c + (p - begin) * sums + from * kPanelRows);
        }
      }
    }
    const MatmulOutput out{args->dx, args->cols, nullptr, args->accumulate};
    for (int64_t p = begin; p < end; ++p)
      store_float(out, p * kPanelRows, smaller(kPanelRows, args->cols - p * kPanelRows), first, m,
                  c + (p - begin) * sums);
  }

  static void task(void* context, int64_t index, int) {
    const auto* gemm = static_cast<const PairGemm*>(context);
    gemm->run_group(index * gemm->group, smaller(gemm->panels(), (index + 1) * gemm->group));
  }
};

/// Panels of an item: few enough that threads end together, at most as many as share cache lines of 4-bit codes.
NIBBLE_INLINE int64_t panel_group(const Context& context, int64_t panels) {
  const int64_t threads = context.pool ? context.pool->threads() : 1, share = panels / (3 * threads);
  return share < 1 ? 1 : smaller(share, 4);
}

[[maybe_unused]] static void run_pair_gemm(const Context& context, const InputGradientArgs& args) {
  const MatmulInput input{args.dy, args.m, args.rows, DType::bf16};
  for (int64_t first = 0; first < args.m; first += kSlabRows) {
    PairGemm gemm{&args, {args.w, args.rows, args.cols}, nullptr, first, smaller(kSlabRows, args.m - first), 1};
    gemm.group = panel_group(context, gemm.panels());
    auto* dy = static_cast<uint32_t*>(scratch(Scratch::shared_input, gemm.m * gemm.depth() * 4));
    PackX<StepBf16> pack{&input, args.dy_stride, Rounding::bf16, first, gemm.m, gemm.depth(), dy};
    run(context, tile_count(gemm.m), PackX<StepBf16>::task, &pack);
    gemm.dy = dy;
    run(context, (gemm.panels() + gemm.group - 1) / gemm.group, PairGemm::task, &gemm);
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
