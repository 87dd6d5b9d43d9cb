// What the families share: reading options with errors that name them, and the scalars of a step.
#include "optim/family.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace nibble::optim {
namespace {

using Scalars = kernels::OptimizerScalars;

/// Refuses an option that the family has no use for.
void require_use(const Family& family, std::string_view option, std::string_view where) {
  require(std::find(family.options.begin(), family.options.end(), option) != family.options.end(),
          "{}: {} has no option '{}'", where, family.name, option);
}

template <typename T, typename U>
void take(const Family& family, const std::optional<T>& value, std::string_view option, std::string_view where,
          U& target) {
  if (!value) return;
  require_use(family, option, where);
  target = *value;
}

void take_betas(const Family& family, const OptimizerOptions& options, std::string_view where, Hyper& hyper) {
  if (options.betas.empty()) return;
  require_use(family, "betas", where);
  require(options.betas.size() == static_cast<size_t>(family.betas), "{}: betas: found {} values, {} takes {}", where,
          options.betas.size(), family.name, family.betas);
  std::copy(options.betas.begin(), options.betas.end(), hyper.betas.begin());
}

}  // namespace

Hyper apply(const Choice& choice, Hyper hyper, const OptimizerOptions& options, std::string_view where) {
  const Family& family = *choice.family;
  if (options.lr) hyper.lr = *options.lr;
  if (options.weight_decay) hyper.weight_decay = *options.weight_decay;
  if (options.min_8bit_size) hyper.min_8bit_size = *options.min_8bit_size;
  if (options.percentile_clipping) hyper.percentile_clipping = *options.percentile_clipping;
  take_betas(family, options, where, hyper);
  take(family, options.eps, "eps", where, hyper.eps);
  take(family, options.momentum, "momentum", where, hyper.betas[0]);
  take(family, options.max_unorm, "max_unorm", where, hyper.max_unorm);
  take(family, options.t_alpha, "t_alpha", where, hyper.t_alpha);
  take(family, options.t_beta3, "t_beta3", where, hyper.t_beta3);
  const bool is_smoothing = family.rule == kernels::OptimizerRule::rmsprop;
  take(family, options.alpha, "alpha", where, is_smoothing ? hyper.betas[0] : hyper.alpha);
  if (options.optim_bits) {
    require(choice.bits == 0 || *options.optim_bits == choice.bits || where.starts_with("override"),
            "{}: optim_bits {}: the name says {}", where, *options.optim_bits, choice.bits);
    hyper.optim_bits = *options.optim_bits;
  }
  return hyper;
}

void check(const Family& family, const Hyper& hyper, std::string_view where) {
  const auto at_least_0 = [&](double value, std::string_view option) {
    require(value >= 0 && std::isfinite(value), "{}: {}: found {}, expected a finite number of 0 or more", where,
            option, value);
  };
  require(hyper.lr != kNotGiven, "{}: {} needs lr", where, family.name);
  at_least_0(hyper.lr, "lr");
  at_least_0(hyper.eps, "eps");
  at_least_0(hyper.weight_decay, "weight_decay");
  at_least_0(hyper.alpha, "alpha");
  at_least_0(hyper.max_unorm, "max_unorm");
  require(hyper.betas[0] != kNotGiven, "{}: {} needs momentum", where, family.name);
  for (const double beta : hyper.betas)
    require(beta >= 0 && static_cast<float>(beta) < 1, "{}: betas, momentum or alpha: found {}, expected [0, 1)", where,
            beta);
  require(family.rule != kernels::OptimizerRule::rmsprop || hyper.betas[0] > 0, "{}: {} needs alpha of more than 0",
          where, family.name);
  require(hyper.t_alpha >= 0 && hyper.t_beta3 >= 0, "{}: t_alpha, t_beta3: found {}, {}, expected 0 or more", where,
          hyper.t_alpha, hyper.t_beta3);
  require(hyper.t_beta3 == 0 || (hyper.betas[0] > 0 && hyper.betas[2] > 0), "{}: t_beta3 needs betas of more than 0",
          where);
  require(hyper.optim_bits == 8 || hyper.optim_bits == 32, "{}: optim_bits: found {}, expected 8 or 32", where,
          hyper.optim_bits);
  require(hyper.min_8bit_size >= 0, "{}: min_8bit_size: found {}, expected 0 or more", where, hyper.min_8bit_size);
  require(hyper.percentile_clipping >= 1 && hyper.percentile_clipping <= 100,
          "{}: percentile_clipping: found {}, expected 1 to 100", where, hyper.percentile_clipping);
}

double bias_correction(double beta, int64_t step) {
  return 1 - std::pow(static_cast<double>(static_cast<float>(beta)), static_cast<double>(step));
}

Scalars common_scalars(const Hyper& hyper) {
  Scalars c;
  c.beta1 = static_cast<float>(hyper.betas[0]);
  c.beta2 = static_cast<float>(hyper.betas[1]);
  c.beta3 = static_cast<float>(hyper.betas[2]);
  c.eps = static_cast<float>(hyper.eps);
  c.rate = static_cast<float>(hyper.lr);
  c.max_unorm = static_cast<float>(hyper.max_unorm);
  return c;
}

Scalars decoupled_scalars(const Hyper& hyper) {
  Scalars c = common_scalars(hyper);
  c.keep = static_cast<float>(1 - hyper.lr * hyper.weight_decay);
  return c;
}

Scalars coupled_scalars(const Hyper& hyper) {
  Scalars c = common_scalars(hyper);
  c.coupled_decay = static_cast<float>(hyper.weight_decay);
  return c;
}

Scalars adam_scalars(const Hyper& hyper, int64_t step) {
  Scalars c = decoupled_scalars(hyper);
  const double correction1 = bias_correction(hyper.betas[0], step);
  const double correction2 = std::sqrt(bias_correction(hyper.betas[1], step));
  c.rate = static_cast<float>(hyper.lr * correction2 / correction1);
  c.eps = static_cast<float>(hyper.eps * correction2);
  c.unorm_scale = static_cast<float>(correction2 / correction1);
  return c;
}

}  // namespace nibble::optim
