// rms_norm_gradient and layer_norm_gradient: rows in parallel for dx, then columns in parallel for what sums over rows.
#include "kernels/cpu/isa/simd.h"
#include "kernels/cpu/scratch.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

constexpr int64_t kColumns = 64;  // one task's share of dweight

/// Sums of body(c, n) over a row, a vector at a time.
template <typename Body>
NIBBLE_SIMD float sum_columns(int64_t cols, Body&& body) {
  F32 sum = set1(0);
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) sum = sum + body(c, kLanes);
  if (c < cols) sum = sum + body(c, cols - c);  // lanes past the end are zero
  return reduce_add(sum);
}

/// out[c] (= or +=) body(c, n).
template <typename Body>
NIBBLE_SIMD void put_columns(float* out, int64_t cols, bool accumulate, Body&& body) {
  for (int64_t c = 0; c < cols; c += kLanes) {
    const int64_t n = min_of(kLanes, cols - c);
    F32 value = body(c, n);
    if (accumulate) value = value + load_first(out + c, n);
    n == kLanes ? store(out + c, value) : store_some(out + c, value, n);
  }
}

/// 1 / sqrt of the mean square of a row (less its mean).
float rms_scale(const float* x, int64_t cols, float eps) {
  const float squares = sum_columns(cols, [&](int64_t c, int64_t n) {
    const F32 v = load_first(x + c, n);
    return v * v;
  });
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(cols) + eps);
}

struct Moments {
  float mean, scale;
};
Moments moments(const float* x, int64_t cols, float eps) {
  const float mean =
      sum_columns(cols, [&](int64_t c, int64_t n) { return load_first(x + c, n); }) / static_cast<float>(cols);
  float squares = 0;
  int64_t c = 0;
  F32 sum = set1(0);
  for (; c + kLanes <= cols; c += kLanes) {
    const F32 v = load(x + c) - set1(mean);
    sum = sum + v * v;
  }
  for (; c < cols; ++c) squares += (x[c] - mean) * (x[c] - mean);
  squares += reduce_add(sum);
  return {mean, 1.0f / __builtin_sqrtf(squares / static_cast<float>(cols) + eps)};
}

void rms_norm_row(const RmsNormGradientArgs& args, int64_t r, float scale) {
  const float *x = args.x + r * args.cols, *dy = args.dy + r * args.cols;
  const F32 offset = set1(args.weight_offset);
  const auto weighted = [&](int64_t c, int64_t n) {
    return (load_first(args.weight + c, n) + offset) * load_first(dy + c, n);
  };
  const float product =
      sum_columns(args.cols, [&](int64_t c, int64_t n) { return load_first(x + c, n) * weighted(c, n); });
  const F32 shrink = set1(scale * scale * product / static_cast<float>(args.cols));
  put_columns(args.dx + r * args.cols, args.cols, args.accumulate,
              [&](int64_t c, int64_t n) { return set1(scale) * (weighted(c, n) - load_first(x + c, n) * shrink); });
}

void layer_norm_row(const LayerNormGradientArgs& args, int64_t r, Moments m) {
  const float *x = args.x + r * args.cols, *dy = args.dy + r * args.cols;
  const float* weight = args.weight + r % args.sets * args.cols;
  const auto weighted = [&](int64_t c, int64_t n) { return load_first(weight + c, n) * load_first(dy + c, n); };
  const auto normed = [&](int64_t c, int64_t n) { return (load_first(x + c, n) - set1(m.mean)) * set1(m.scale); };
  const auto cols = static_cast<float>(args.cols);
  const F32 mean = set1(sum_columns(args.cols, weighted) / cols);
  const F32 product =
      set1(sum_columns(args.cols, [&](int64_t c, int64_t n) { return weighted(c, n) * normed(c, n); }) / cols);
  put_columns(args.dx + r * args.cols, args.cols, args.accumulate,
              [&](int64_t c, int64_t n) { return set1(m.scale) * (weighted(c, n) - mean - normed(c, n) * product); });
}

NIBBLE_SIMD int64_t grain_of(int64_t cols) { return max_of(1, 16384 / max_of(1, cols)); }

}  // namespace

void rms_norm_gradient(const Context& context, const RmsNormGradientArgs& args) {
  auto* scales = static_cast<float*>(scratch(Scratch::gradient_rows, args.rows * int64_t{sizeof(float)}));
  for_ranges(context, args.rows, grain_of(args.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      scales[r] = rms_scale(args.x + r * args.cols, args.cols, args.eps);
      rms_norm_row(args, r, scales[r]);
    }
  });
  if (!args.dweight) return;
  for_ranges(context, args.cols, kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < args.rows; ++r) {
      const float *x = args.x + r * args.cols, *dy = args.dy + r * args.cols;
      for (int64_t c = begin; c < end; ++c) args.dweight[c] += x[c] * scales[r] * dy[c];
    }
  });
}

void layer_norm_gradient(const Context& context, const LayerNormGradientArgs& args) {
  auto* all = static_cast<Moments*>(scratch(Scratch::gradient_rows, args.rows * int64_t{sizeof(Moments)}));
  for_ranges(context, args.rows, grain_of(args.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      all[r] = moments(args.x + r * args.cols, args.cols, args.eps);
      layer_norm_row(args, r, all[r]);
    }
  });
  if (!args.dweight && !args.dbias) return;
  for_ranges(context, args.cols, kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < args.rows; ++r) {
      const float *x = args.x + r * args.cols, *dy = args.dy + r * args.cols;
      for (int64_t c = begin; c < end; ++c) {
        const int64_t at = r % args.sets * args.cols + c;
        if (args.dweight) args.dweight[at] += (x[c] - all[r].mean) * all[r].scale * dy[c];
        if (args.dbias) args.dbias[at] += dy[c];
      }
    }
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
