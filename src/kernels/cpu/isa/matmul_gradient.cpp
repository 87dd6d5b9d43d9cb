// input_gradient: panels of the weight, decoded into cache, meet all rows of dy. weight_gradient: tiles of dw, each the
// product of a few columns of dy with x. Sums run over rows in ascending order whatever the number of threads.
#include "kernels/cpu/isa/attention_tile.h"
#include "kernels/cpu/isa/decode_range.h"
#include "kernels/cpu/isa/pair_gemm.h"
#include "kernels/cpu/scratch.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

constexpr int64_t kPanelCols = 256;   // of the weight
constexpr int64_t kPanelDepth = 128;  // rows of the weight: the panel takes 128 KB
constexpr int64_t kDwRows = 48;       // of a tile of dw
constexpr int64_t kDwCols = 256;      // likewise
constexpr int64_t kDwDepth = 256;     // rows of dy and x

float* floats(Scratch use, int64_t count) { return static_cast<float*>(scratch(use, count * int64_t{sizeof(float)})); }

/// Columns [first, first + count) of dx.
void gradient_columns(const InputGradientArgs& args, int64_t first, int64_t count) {
  const int64_t width = padded(count);
  const bool is_rounded = args.compute == DType::bf16;
  float* panel = floats(Scratch::gradient, kPanelDepth * (width + (is_rounded ? args.m : 0)));
  float* rounded = panel + kPanelDepth * width;  // (m, depth) of dy
  const bool is_direct = width == count;         // else sums go to rows of whole vectors first
  float* sums = is_direct ? args.dx + first : floats(Scratch::gradient_rows, args.m * width);
  const int64_t stride = is_direct ? args.cols : width;
  for (int64_t k = 0; k < args.rows; k += kPanelDepth) {
    const int64_t depth = min_of(kPanelDepth, args.rows - k);
    for (int64_t r = 0; r < depth; ++r) {
      decode_range(args.w, args.cols, k + r, first, count, panel + r * width);
      for (int64_t c = count; c < width; ++c) panel[r * width + c] = 0;
      if (is_rounded) round_row(panel + r * width, count, Rounding::bf16, panel + r * width);
    }
    for (int64_t i = 0; is_rounded && i < args.m; ++i)
      round_row(args.dy + k + i * args.dy_stride, depth, Rounding::bf16, rounded + i * kPanelDepth);
    const bool adds = k > 0 || (is_direct && args.accumulate);
    multiply(is_rounded ? rounded : args.dy + k, is_rounded ? kPanelDepth : args.dy_stride, args.m, panel, width, depth,
             width, sums, stride, adds);
  }
  if (is_direct) return;
  for (int64_t i = 0; i < args.m; ++i)
    for (int64_t c = 0; c < count; ++c) {
      float& target = args.dx[i * args.cols + first + c];
      target = args.accumulate ? target + sums[i * width + c] : sums[i * width + c];
    }
}

void gradient_tile(const WeightGradientArgs& args, int64_t row, int64_t col) {
  const int64_t rows = min_of(kDwRows, args.rows - row), cols = min_of(kDwCols, args.cols - col);
  const int64_t width = padded(cols);
  float* sums = floats(Scratch::gradient, kDwRows * (width + kDwDepth));
  float* dy = sums + kDwRows * width;  // (rows, depth)
  const bool is_direct = width == cols;
  float* x = is_direct ? nullptr : floats(Scratch::gradient_rows, kDwDepth * width);
  for (int64_t k = 0; k < args.m || k == 0; k += kDwDepth) {
    const int64_t depth = min_of(kDwDepth, args.m - k);
    for (int64_t i = 0; i < depth; ++i)
      for (int64_t r = 0; r < rows; ++r) dy[r * kDwDepth + i] = args.dy[(k + i) * args.rows + row + r];
    if (!is_direct) unpack_rows_strided(args.x + k * args.cols + col, args.cols, depth, cols, x, width);
    multiply(dy, kDwDepth, rows, is_direct ? args.x + k * args.cols + col : x, is_direct ? args.cols : width, depth,
             width, sums, width, k > 0);
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* out = args.dw + (row + r) * args.cols + col;
    for (int64_t c = 0; c < cols; ++c) out[c] = args.accumulate ? out[c] + sums[r * width + c] : sums[r * width + c];
  }
}

}  // namespace

void input_gradient(const Context& context, const InputGradientArgs& args) {
#if defined(NIBBLE_AVX512)
  if (args.compute == DType::bf16) return run_pair_gemm(context, args);
#endif
  for_ranges(context, ceil_of(args.cols, kPanelCols), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      gradient_columns(args, panel * kPanelCols, min_of(kPanelCols, args.cols - panel * kPanelCols));
  });
}

void weight_gradient(const Context& context, const WeightGradientArgs& args) {
  const int64_t across = ceil_of(args.cols, kDwCols);
  for_ranges(context, ceil_of(args.rows, kDwRows) * across, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile)
      gradient_tile(args, tile / across * kDwRows, tile % across * kDwCols);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
