// low_rank_update and low_rank_gradient in fp32: x, y and their gradients are read once, a block of rows or a panel of
// columns at a time. Sums run over columns or rows in ascending order whatever the number of threads.
#include "kernels/cpu/isa/attention_tile.h"
#include "kernels/cpu/isa/dropout_lanes.h"
#include "kernels/cpu/scratch.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

constexpr int64_t kBlockRows = 48;   // of x and dy that an item takes, a multiple of the register tile's six
constexpr int64_t kPieceCols = 256;  // of x that are dropped at a time: a block of them stays in the second cache
constexpr int64_t kPanelCols = 64;   // of x or dy that an item of a sum over rows takes
constexpr int64_t kRowsAhead = 16;   // of x that are asked for: it lies in memory since the way forward
constexpr int64_t kChunkRows = 64;   // of such a panel at a time: they stay in the first cache

float* floats(Scratch use, int64_t count) { return static_cast<float*>(scratch(use, count * int64_t{sizeof(float)})); }

/// (rows, cols), `stride` apart, to (cols, padded(rows)), `out_stride` apart, zeros behind.
void turn(const float* x, int64_t stride, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += kLanes)
    for (int64_t c = 0; c < cols; c += kLanes) {
      const int64_t count = min_of(kLanes, cols - c);
      F32 square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        square[i] = r + i < rows ? load_first(x + (r + i) * stride + c, count) : set1(0);
      transpose(square);
      for (int64_t i = 0; i < count; ++i) store(out + (c + i) * out_stride + r, square[i]);
    }
}

/// `count` of the columns of x (rows, stride) from x on, in whole vectors: as they lie, or in `room` (rows,
/// kPanelCols).
struct Panel {
  const float* data;
  int64_t stride, width;

  Panel(const float* x, int64_t x_stride, int64_t rows, int64_t count, float* room)
      : data(x), stride(x_stride), width(padded(count)) {
    if (width == count) return;
    unpack_rows_strided(x, x_stride, rows, count, room, kPanelCols);
    data = room;
    stride = kPanelCols;
  }
};

#if defined(__AVX512F__)
constexpr int kSumRows = 8;
#else
constexpr int kSumRows = 4;
#endif

/// sums (rank, kPanelCols) += left (rank, depth) . panel (depth, width).
void add_product(const float* left, int64_t left_stride, int64_t rank, const Panel& panel, int64_t depth, float* sums) {
  int64_t r = 0;
  for (; r + kSumRows <= rank; r += kSumRows) {
    int64_t c = 0;
    for (; c + 2 * kLanes <= panel.width; c += 2 * kLanes)
      multiply_tile<kSumRows, 2>(left + r * left_stride, left_stride, panel.data + c, panel.stride, depth,
                                 sums + r * kPanelCols + c, kPanelCols, true);
    for (; c < panel.width; c += kLanes)
      multiply_tile<kSumRows, 1>(left + r * left_stride, left_stride, panel.data + c, panel.stride, depth,
                                 sums + r * kPanelCols + c, kPanelCols, true);
  }
  if (r < rank)
    multiply(left + r * left_stride, left_stride, rank - r, panel.data, panel.stride, depth, panel.width,
             sums + r * kPanelCols, kPanelCols, true);
}

void scale_all(float* x, int64_t count, float scale) {
  for (int64_t i = 0; i < count; i += kLanes) store(x + i, load(x + i) * set1(scale));
}

int64_t low_stride(int64_t m) { return ceil_of(m, 8) * 8; }

/// One row of low (count), of row i, to column i of its transpose.
void put_low(const float* low, int64_t rank, int64_t i, float* transposed, int64_t stride) {
  for (int64_t j = 0; j < rank; ++j) transposed[j * stride + i] = low[j];
}

/// Rows [begin, end) of low, and of y. a_t: (cols, width), b_t: (rank, padded(rows)).
void update_rows(const LowRankArgs& args, const float* a_t, const float* b_t, int64_t begin, int64_t end) {
  const int64_t width = padded(args.rank), count = end - begin;
  const auto* x = static_cast<const float*>(args.x);
  float* low = floats(Scratch::gradient, kBlockRows * (width + kPieceCols + kLanes));
  float *dropped = low + kBlockRows * width, *last = dropped + kBlockRows * kPieceCols;
  for (int64_t c = 0; c < args.cols; c += kPieceCols) {
    const int64_t depth = min_of(kPieceCols, args.cols - c);
    const float* piece = x + begin * args.cols + c;
    if (args.p > 0)
      for (int64_t i = 0; i < count; ++i)
        drop_run({args.seed, args.p}, static_cast<uint64_t>((begin + i) * args.cols + c), piece + i * args.cols, depth,
                 dropped + i * kPieceCols);
    multiply(args.p > 0 ? dropped : piece, args.p > 0 ? kPieceCols : args.cols, count, a_t + c * width, width, depth,
             width, low, width, c > 0);
  }
  scale_all(low, count * width, args.scale);
  for (int64_t i = 0; i < count; ++i)
    put_low(low + i * width, args.rank, begin + i, static_cast<float*>(args.low_transposed), low_stride(args.m));
  if (!args.y) return;
  float* y = static_cast<float*>(args.y) + begin * args.rows;
  const int64_t whole = args.rows / kLanes * kLanes, stride = padded(args.rows);
  multiply(low, width, count, b_t, stride, args.rank, whole, y, args.rows, true);
  if (whole == args.rows) return;
  multiply(low, width, count, b_t + whole, stride, args.rank, kLanes, last, kLanes, false);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t n = whole; n < args.rows; ++n) y[i * args.rows + n] += last[i * kLanes + n - whole];
}

/// What the items of a gradient share.
struct Gradient {
  const LowRankGradientArgs& args;
  int64_t width = padded(args.rank), low_step = low_stride(args.m);
  const float* b = nullptr;  // (rows, width)
  float* dlow = nullptr;     // (m, width)
  float* dlow_t = nullptr;   // (rank, low_step)

  void low_rows(int64_t begin, int64_t end) const {
    const float* dy = static_cast<const float*>(args.dy) + begin * args.rows;
    float* out = dlow + begin * width;
    multiply(dy, args.rows, end - begin, b, width, args.rows, width, out, width, false);
    scale_all(out, (end - begin) * width, args.scale);
    for (int64_t i = begin; i < end; ++i) put_low(dlow + i * width, args.rank, i, dlow_t, low_step);
  }

  /// Columns [first, first + count) of dy: those rows of db.
  void b_rows(int64_t first, int64_t count) const {
    float* sums = floats(Scratch::gradient, (args.rank + kChunkRows) * kPanelCols);
    for (int64_t i = 0; i < args.rank * kPanelCols; ++i) sums[i] = 0;
    for (int64_t i = 0; i < args.m; i += kChunkRows) {
      const int64_t depth = min_of(kChunkRows, args.m - i);
      const Panel panel(static_cast<const float*>(args.dy) + i * args.rows + first, args.rows, depth, count,
                        sums + args.rank * kPanelCols);
      add_product(static_cast<const float*>(args.low_transposed) + i, low_step, args.rank, panel, depth, sums);
    }
    for (int64_t n = 0; n < count; ++n)
      for (int64_t j = 0; j < args.rank; ++j) {
        float& target = args.db[(first + n) * args.rank + j];
        target = args.accumulate_b ? target + sums[j * kPanelCols + n] : sums[j * kPanelCols + n];
      }
  }

  /// Columns [first, first + count) of da and dx.
  void x_columns(int64_t first, int64_t count) const {
    const int64_t room = kChunkRows * kPanelCols, sums_size = args.rank * kPanelCols;
    float* sums = floats(Scratch::gradient, 2 * sums_size + room);
    float *a_room = sums + sums_size, *part = a_room + sums_size;
    for (int64_t i = 0; i < sums_size; ++i) sums[i] = 0;
    const Panel a(args.a + first, args.cols, args.rank, count, a_room);
    for (int64_t i = 0; i < args.m; i += kChunkRows) {
      const int64_t depth = min_of(kChunkRows, args.m - i);
      if (args.da) add_a(first, count, i, depth, part, sums);
      if (args.dx) add_x(a, first, count, i, depth, part);
    }
    for (int64_t j = 0; args.da && j < args.rank; ++j)
      for (int64_t c = 0; c < count; ++c) {
        float& target = args.da[j * args.cols + first + c];
        target = args.accumulate_a ? target + sums[j * kPanelCols + c] : sums[j * kPanelCols + c];
      }
  }

 private:
  /// sums += dlow^T times rows [i, i + depth) of what dropout left of x.
  void add_a(int64_t first, int64_t count, int64_t i, int64_t depth, float* part, float* sums) const {
    const float* x = static_cast<const float*>(args.x) + i * args.cols + first;
    if (args.p == 0)
      return add_product(dlow_t + i, low_step, args.rank, Panel(x, args.cols, depth, count, part), depth, sums);
    for (int64_t r = 0; r < depth; ++r) {
      float* row = part + r * kPanelCols;
      prefetch_ahead(x + r * args.cols, kPanelCols * int64_t{sizeof(float)},
                     kRowsAhead * args.cols * int64_t{sizeof(float)});
      drop_run({args.seed, args.p}, static_cast<uint64_t>((i + r) * args.cols + first), x + r * args.cols, count, row);
      for (int64_t c = count; c < padded(count); ++c) row[c] = 0;
    }
    Panel panel(part, kPanelCols, depth, kPanelCols, nullptr);
    panel.width = padded(count);
    add_product(dlow_t + i, low_step, args.rank, panel, depth, sums);
  }

  /// Rows [i, i + depth) of dx += dropout(dlow a).
  void add_x(const Panel& a, int64_t first, int64_t count, int64_t i, int64_t depth, float* part) const {
    float* dx = static_cast<float*>(args.dx) + i * args.cols + first;
    multiply(dlow + i * width, width, depth, a.data, a.stride, args.rank, a.width, part, kPanelCols, false);
    for (int64_t r = 0; r < depth; ++r) {
      float *row = part + r * kPanelCols, *target = dx + r * args.cols;
      if (args.p > 0)
        drop_run({args.seed, args.p}, static_cast<uint64_t>((i + r) * args.cols + first), row, count, row);
      for (int64_t c = 0; c < count; c += kLanes) {
        const int64_t n = min_of(kLanes, count - c);
        store_first(target + c, load_first(target + c, n) + load(row + c), n);
      }
    }
  }
};

}  // namespace

void low_rank_update(const Context& context, const LowRankArgs& args) {
  const int64_t width = padded(args.rank), stride = padded(args.rows);
  float* a_t = floats(Scratch::shared_input, args.cols * width + args.rank * stride);
  float* b_t = a_t + args.cols * width;
  turn(args.a, args.cols, args.rank, args.cols, a_t, width);
  if (args.y) turn(args.b, args.rank, args.rows, args.rank, b_t, stride);
  for_ranges(context, args.m, kBlockRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kBlockRows) update_rows(args, a_t, b_t, i, min_of(end, i + kBlockRows));
  });
}

void low_rank_gradient(const Context& context, const LowRankGradientArgs& args) {
  Gradient gradient{args};
  const int64_t width = gradient.width;
  float* memory = floats(Scratch::shared_input, (args.rows + args.m) * width + args.rank * gradient.low_step);
  for (int64_t n = 0; n < args.rows; ++n)
    for (int64_t j = 0; j < width; j += kLanes)
      store(memory + n * width + j, load_first(args.b + n * args.rank + j, min_of(kLanes, args.rank - j)));
  gradient.b = memory;
  gradient.dlow = memory + args.rows * width;
  gradient.dlow_t = gradient.dlow + args.m * width;
  const int64_t blocks = ceil_of(args.m, kBlockRows), panels = args.db ? ceil_of(args.rows, kPanelCols) : 0;
  for_ranges(context, blocks + panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      if (item < blocks) {
        gradient.low_rows(item * kBlockRows, min_of(args.m, (item + 1) * kBlockRows));
      } else {
        const int64_t first = (item - blocks) * kPanelCols;
        gradient.b_rows(first, min_of(kPanelCols, args.rows - first));
      }
    }
  });
  if (!args.da && !args.dx) return;
  for_ranges(context, ceil_of(args.cols, kPanelCols), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      gradient.x_columns(panel * kPanelCols, min_of(kPanelCols, args.cols - panel * kPanelCols));
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
