// AdEMAMix (Pagliardini, Ablin & Grangier, 2024): Adam with a second, slow average of the gradient, which is weighted
// by alpha. t_alpha and t_beta3 let alpha and the slow beta grow over the first steps.
#include <algorithm>
#include <cmath>

#include "optim/family.h"

namespace nibble::optim {
namespace {

/// The beta whose half-life lies on a line from that of beta1 to that of beta3.
double beta3_at(const Hyper& hyper, int64_t step) {
  if (hyper.t_beta3 == 0) return hyper.betas[2];
  const double done = static_cast<double>(step) / static_cast<double>(hyper.t_beta3);
  const double log1 = std::log(hyper.betas[0]), log3 = std::log(hyper.betas[2]);
  return std::min(std::exp(log1 * log3 / ((1 - done) * log3 + done * log1)), hyper.betas[2]);
}

kernels::OptimizerScalars scalars(const Hyper& hyper, int64_t step) {
  kernels::OptimizerScalars c = decoupled_scalars(hyper);
  const double done =
      hyper.t_alpha > 0 ? std::min(1.0, static_cast<double>(step) / static_cast<double>(hyper.t_alpha)) : 1;
  c.alpha = static_cast<float>(hyper.alpha * done);
  c.beta3 = static_cast<float>(step >= hyper.t_beta3 ? hyper.betas[2] : beta3_at(hyper, step));
  c.correction1 = static_cast<float>(1 / bias_correction(hyper.betas[0], step));
  c.correction2 = static_cast<float>(1 / std::sqrt(bias_correction(hyper.betas[1], step)));
  return c;
}

}  // namespace

constinit const Family kAdemamix{
    .name = "AdEMAMix",
    .rule = kernels::OptimizerRule::ademamix,
    .betas = 3,
    .has_variance = true,
    .has_slow = true,
    .is_paged_too = true,
    .options = {"betas", "eps", "alpha", "t_alpha", "t_beta3"},
    .defaults = {.lr = 1e-3, .betas = {0.9, 0.999, 0.9999}, .eps = 1e-8, .weight_decay = 1e-2, .alpha = 5},
    .scalars = scalars};

}  // namespace nibble::optim
