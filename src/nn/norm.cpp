// Calls the kernel of the norm's kind.
#include "nn/norm.h"

#include "base/error.h"

namespace nibble::nn {

void run_norm(const ops::Backend& backend, const Norm& norm, ConstValues x, int64_t rows, Values out) {
  const int64_t cols = norm.cols();
  const kernels::Context& context = backend.context_for(rows * cols);
  const auto* weight = norm.weight.as<float>();
  if (norm.kind == NormKind::rms) {
    backend.kernels().rms_norm(
        context, {x.data, weight, rows, cols, norm.eps, norm.weight_offset, out.data, false, x.dtype, out.dtype});
  } else {
    const float* bias = norm.bias ? norm.bias.as<float>() : nullptr;
    backend.kernels().layer_norm(context, {x.data, weight, bias, rows, cols, norm.eps, out.data,
                                           norm.weight.count() / cols, x.dtype, out.dtype});
  }
}

void add_norm(const ops::Backend& backend, const Norm& norm, ConstValues x, int64_t rows, Values out) {
  if (norm.kind != NormKind::rms) fail(ErrorCode::unsupported, "a LayerNorm of what is added to the residual stream");
  const int64_t cols = norm.weight.count();
  backend.kernels().rms_norm(
      backend.context_for(rows * cols),
      {x.data, norm.weight.as<float>(), rows, cols, norm.eps, norm.weight_offset, out.data, true, x.dtype, out.dtype});
}

}  // namespace nibble::nn
