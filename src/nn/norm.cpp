// Calls the kernel of the norm's kind.
#include "nn/norm.h"

#include "base/error.h"

namespace nibble::nn {

void run_norm(const ops::Backend& backend, const Norm& norm, const float* x, int64_t rows, float* out) {
  const int64_t cols = norm.cols();
  const kernels::Context& context = backend.context_for(rows * cols);
  const auto* weight = norm.weight.as<float>();
  if (norm.kind == NormKind::rms) {
    backend.kernels().rms_norm(context, {x, weight, rows, cols, norm.eps, norm.weight_offset, out});
  } else {
    const float* bias = norm.bias ? norm.bias.as<float>() : nullptr;
    backend.kernels().layer_norm(context, {x, weight, bias, rows, cols, norm.eps, out, norm.weight.count() / cols});
  }
}

void add_norm(const ops::Backend& backend, const Norm& norm, const float* x, int64_t rows, float* out) {
  if (norm.kind != NormKind::rms) fail(ErrorCode::unsupported, "a LayerNorm of what is added to the residual stream");
  const int64_t cols = norm.weight.count();
  backend.kernels().rms_norm(backend.context_for(rows * cols),
                             {x, norm.weight.as<float>(), rows, cols, norm.eps, norm.weight_offset, out, true});
}

}  // namespace nibble::nn
