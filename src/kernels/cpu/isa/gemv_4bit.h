// 4-bit weights times a few rows of x, straight from the packed bytes: a row of w is a chain of chunks.
#pragma once

#include "kernels/cpu/isa/absmax.h"
#include "kernels/cpu/isa/chunk_4bit.h"
#include "kernels/cpu/isa/panel_gemm.h"

#if defined(NIBBLE_HAS_CHUNKS)

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Rows of x up to which decoding without a panel is faster.
inline constexpr int64_t kGemvRows = 16;

/// Rows of w that share loads of x, at most.
#if defined(NIBBLE_AVX512)
inline constexpr int kGroupRows = 4;
#else
inline constexpr int kGroupRows = 2;
#endif

// 4 KiB pages stop the processor's own prefetching. Long rows of a group lie far apart, each a long stream that is
// asked for kStreamAhead bytes ahead; short ones are neighbours, one stream that is asked for kUnitAhead bytes ahead.
inline constexpr int64_t kLongRowBytes = 1024;
inline constexpr int64_t kStreamAhead = 1024;
inline constexpr int64_t kUnitAhead = 4096;

/// More blocks than a row has.
inline constexpr int64_t kAny = INT64_MAX;

/// x in the order of the chunks: (m, chunks, kParts, kPartElements), zero behind the last column.
template <class Chunk>
static void pack_chunks(const MatmulInput& input, Rounding rounding, int64_t chunks, typename Chunk::Element* out) {
  alignas(64) float piece[kChunkCodes];
  for (int64_t i = 0; i < input.m; ++i)
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t begin = c * kChunkCodes, count = smaller(kChunkCodes, input.cols - begin);
      const float* x = input.x_f32() + i * input.cols + begin;
      round_row(x, count, rounding, piece);
      for (int64_t k = count; k < kChunkCodes; ++k) piece[k] = 0;
      for (int t = 0; t < Chunk::kParts; ++t)
        for (int64_t e = 0; e < Chunk::kPartElements; ++e) {
          const float value = piece[Chunk::code_of(t, e)];
          if constexpr (sizeof(typename Chunk::Element) == 2)
            *out++ = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, value) >> 16);
          else
            *out++ = value;
        }
    }
}

template <class Chunk, class Scales>
struct Gemv4Bit {
  using Element = typename Chunk::Element;
  static constexpr int64_t kChunkElements = Chunk::kParts * Chunk::kPartElements;

  const MatmulInput* input;
  RowUnits<Matmul4BitJob> units;
  const Element* x;
  int64_t chunks;  // the last one may be short

  /// Rows of one job, and where the scales of their blocks are.
  struct Rows {
    const uint8_t* packed;
    int64_t step_bytes;  // from a row of a group to the next
    const float* scales;
    int64_t step_scales;
    int64_t step;
    int64_t last_scale;
    int shift;                              // log2(block)
    float factor;                           // of the sums
    int64_t ahead, ahead_row, ahead_chunk;  // bytes from `packed` to what is asked for: at first, and by row and chunk
  };

  template <int R, int M, int T>
  NIBBLE_INLINE static void dot_parts(const Chunk& chunk, const Bytes (&w)[R], const Element* x, int64_t x_stride,
                                      VecF (&sum)[R][M]) {
    if constexpr (T < Chunk::kParts) {
      decltype(Chunk::load_x(x)) xs[M];
      NIBBLE_UNROLL
      for (int j = 0; j < M; ++j) xs[j] = Chunk::load_x(x + j * x_stride + T * Chunk::kPartElements);
      NIBBLE_UNROLL
      for (int r = 0; r < R; ++r) {
        const auto part = chunk.template part<T>(w[r]);
        NIBBLE_UNROLL
        for (int j = 0; j < M; ++j) sum[r][j] = Chunk::dot(sum[r][j], part, xs[j]);
      }
      dot_parts<R, M, T + 1>(chunk, w, x, x_stride, sum);
    }
  }

  /// sums (R, M) += the products of chunk c; it is `lanes` long, or whole if that is 0.
  template <int R, int M>
  NIBBLE_INLINE static void dot_chunk(const Chunk& chunk, const Rows& rows, const Element* x, int64_t x_stride,
                                      int64_t c, int64_t lanes, VecF (&sums)[R][M]) {
    const uint8_t* packed = rows.packed + c * (kChunkCodes / 2);
    Bytes w[R];
    VecF sum[R][M];
    NIBBLE_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = packed + r * rows.step_bytes;
      w[r] = lanes ? load_bytes(p, lanes) : load_bytes(p);
      prefetch_at(rows.packed, rows.ahead + r * rows.ahead_row + c * rows.ahead_chunk);
      NIBBLE_UNROLL
      for (int j = 0; j < M; ++j) sum[r][j] = StepF32::zero();
    }
    dot_parts<R, M, 0>(chunk, w, x + c * kChunkElements, x_stride, sum);
    // Behind the last column x is zero: a short chunk's scales only have to exist.
    NIBBLE_UNROLL
    for (int r = 0; r < R; ++r) {
      const VecF scale = Scales::at(rows.scales + r * rows.step_scales, c, rows.shift, lanes ? rows.last_scale : kAny);
      NIBBLE_UNROLL
      for (int j = 0; j < M; ++j) sums[r][j] = StepF32::step(sums[r][j], sum[r][j], scale);
    }
  }

  /// R rows of w, from n on, with M rows of x, from i on.
  template <int R, int M>
  [[gnu::noinline]] void run_rows(const Chunk& chunk, const Rows& rows, const MatmulOutput& out, int64_t n,
                                  int64_t i) const {
    VecF sums[R][M];
    NIBBLE_UNROLL
    for (int r = 0; r < R; ++r) NIBBLE_UNROLL
    for (int j = 0; j < M; ++j) sums[r][j] = StepF32::zero();
    const int64_t stride = chunks * kChunkElements, full = input->cols / kChunkCodes;
    const int64_t lanes = input->cols % kChunkCodes / 8;
    const Element* from = x + i * stride;
    for (int64_t c = 0; c < full; ++c) dot_chunk<R, M>(chunk, rows, from, stride, c, 0, sums);
    if (lanes) dot_chunk<R, M>(chunk, rows, from, stride, full, lanes, sums);
    float y[R][M];
    sum_rows(sums, y);
    NIBBLE_UNROLL
    for (int r = 0; r < R; ++r) NIBBLE_UNROLL
    for (int j = 0; j < M; ++j) put(out, i + j, n + r * rows.step, y[r][j] * rows.factor);
  }

  /// R rows of w, from n on, with rows [first, first + m) of x.
  template <int R>
  void run_group(const Chunk& chunk, const Rows& rows, const MatmulOutput& out, int64_t n, int64_t first,
                 int64_t m) const {
    for_few_rows(m,
                 [&](auto count, int64_t i) { run_rows<R, decltype(count)::kRows>(chunk, rows, out, n, first + i); });
  }

  /// Rows [row, end) in groups of R, then one by one. Nested scales of long rows are expanded group by group, of short
  /// ones all at once.
  template <int R>
  void run_groups(const Matmul4BitJob& job, int64_t row, int64_t end, int64_t first, int64_t m) const {
    const Chunk chunk(job.code_book);
    const int64_t row_bytes = input->cols / 2, row_scales = input->cols / job.block;
    const bool is_long = row_bytes >= kLongRowBytes;
    const int64_t groups = (end - row) / R, step = is_long ? groups : 1, next = is_long ? 1 : R;
    const NestedAbsmax nested(job.absmax);
    float* expanded = nullptr;
    if (!job.absmax.values) {
      const int64_t count = (is_long ? R : end - row) * row_scales;
      expanded = static_cast<float*>(scratch(Scratch::panel, count * 4));
      if (!is_long) nested.expand(row * row_scales, count, expanded);
    }
    constexpr int64_t kBytes = kChunkCodes / 2;
    Rows rows{nullptr,
              step * row_bytes,
              expanded,
              expanded && is_long ? row_scales : step * row_scales,
              step,
              row_scales - 1,
              __builtin_ctzll(static_cast<uint64_t>(job.block)),
              Chunk::absmax_scale(job.code_book),
              is_long ? kStreamAhead : kUnitAhead,
              is_long ? step * row_bytes : kBytes,
              is_long ? kBytes : R * kBytes};
    const auto start = [&](int64_t n, int64_t count) {
      rows.packed = job.packed + n * row_bytes;
      if (!expanded) rows.scales = job.absmax.values + n * row_scales;
      if (expanded && !is_long) rows.scales = expanded + (n - row) * row_scales;
      for (int64_t r = 0; expanded && is_long && r < count; ++r)
        nested.expand((n + r * step) * row_scales, row_scales, expanded + r * row_scales);
    };
    for (int64_t g = 0; g < groups; ++g) {
      start(row + g * next, R);
      run_group<R>(chunk, rows, job.out, row + g * next, first, m);
    }
    for (int64_t n = row + R * groups; n < end; ++n) {
      start(n, 1);
      run_group<1>(chunk, rows, job.out, n, first, m);
    }
  }

  static void task(void* context, int64_t index, int) {
    const auto& gemv = *static_cast<const Gemv4Bit*>(context);
    int64_t row, end;
    const Matmul4BitJob& job = gemv.units.find(index, row, end);
    if (gemv.input->m == 1) return gemv.template run_groups<kGroupRows>(job, row, end, 0, 1);
    // A few rows of x at a time: they stay in the cache while the rows of w pass by.
    for (int64_t i = 0; i < gemv.input->m; i += kGemvRows)
      gemv.template run_groups<2>(job, row, end, i, smaller(kGemvRows, gemv.input->m - i));
  }
};

/// True if every row of w starts a block and the blocks are whole lanes.
NIBBLE_INLINE bool has_whole_chunks(const Matmul4BitJob* jobs, int64_t count, int64_t cols) {
  for (int64_t j = 0; j < count; ++j)
    if (jobs[j].block < 32 || (jobs[j].block & (jobs[j].block - 1)) || cols % jobs[j].block) return false;
  return true;
}

template <class Chunk, class Scales>
static void run_gemv_4bit(const Context& context, const MatmulInput& input, Rounding rounding,
                          const Matmul4BitJob* jobs, int64_t count) {
  using Gemv = Gemv4Bit<Chunk, Scales>;
  const int64_t chunks = (input.cols + kChunkCodes - 1) / kChunkCodes;
  const int64_t size = input.m * chunks * Gemv::kChunkElements * static_cast<int64_t>(sizeof(typename Chunk::Element));
  auto* x = static_cast<typename Chunk::Element*>(scratch(Scratch::shared_input, size));
  pack_chunks<Chunk>(input, rounding, chunks, x);
  Gemv gemv{&input, share_rows(context, jobs, count, input.cols / 2, 1), x, chunks};
  run(context, gemv.units.total(), Gemv::task, &gemv);
}

/// Jobs of different block sizes take one loop each.
template <class Chunk>
static void run_gemv_4bit(const Context& context, const MatmulInput& input, Rounding rounding,
                          const Matmul4BitJob* jobs, int64_t count) {
  for (int64_t j = 0; j < count; ++j)
    if (jobs[j].block != jobs[0].block) {
      for (int64_t i = 0; i < count; ++i) run_gemv_4bit<Chunk>(context, input, rounding, jobs + i, 1);
      return;
    }
  if (jobs[0].block == 32) return run_gemv_4bit<Chunk, ScalesOf32>(context, input, rounding, jobs, count);
  run_gemv_4bit<Chunk, ScalesOf64>(context, input, rounding, jobs, count);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
