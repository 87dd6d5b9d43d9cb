// A family of optimizers as data: its rule, its defaults, and the numbers of a step. One file per family lists itself
// in optimizers.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"
#include "nibble/optim.h"

namespace nibble::optim {

/// lr or momentum of a family that has no default.
inline constexpr double kNotGiven = -1;

/// Options with every value decided.
struct Hyper {
  double lr = 0;
  std::array<double, 3> betas{};  // SGD, LARS: momentum; RMSprop: alpha
  double eps = 0;
  double weight_decay = 0;
  double alpha = 0;
  int64_t t_alpha = 0;  // 0: none
  int64_t t_beta3 = 0;
  double max_unorm = 0;
  int optim_bits = 32;
  int64_t min_8bit_size = 4096;
  int percentile_clipping = 100;
};

struct Family {
  std::string_view name;  // "AdamW"
  kernels::OptimizerRule rule;
  int betas;                                // how many of Hyper::betas files hold
  bool has_variance;                        // state2
  bool has_slow;                            // a second plane of state1
  bool is_paged_too;                        // has Paged classes
  std::array<std::string_view, 5> options;  // besides lr, weight_decay, optim_bits, min_8bit_size, percentile_clipping
  Hyper defaults;
  kernels::OptimizerScalars (*scalars)(const Hyper& hyper, int64_t step);  // the first step is 1
};

/// In the order of the documents.
std::span<const Family* const> families();

/// A class name taken apart.
struct Choice {
  const Family* family;
  int bits;  // 0: left to the options
  bool is_paged;
};

/// Errors: invalid_argument, listing the names.
Choice choose(std::string_view class_name);

/// The class of one of transformers' --optim strings. Errors: invalid_argument, listing them.
std::string_view class_of_optim(std::string_view optim);

/// `hyper` with what `options` gives; `where` begins error messages. Errors: invalid_argument (no such option).
Hyper apply(const Choice& choice, Hyper hyper, const OptimizerOptions& options, std::string_view where);

/// Errors: invalid_argument, naming the value.
void check(const Family& family, const Hyper& hyper, std::string_view where);

/// The bias corrections of an exponential average after `step` steps: 1 - beta^step, of the beta that kernels use.
double bias_correction(double beta, int64_t step);

/// The scalars that all families share: betas, eps, rate = lr.
kernels::OptimizerScalars common_scalars(const Hyper& hyper);
/// The same with weight decay on the parameter, or as part of the gradient.
kernels::OptimizerScalars decoupled_scalars(const Hyper& hyper);
kernels::OptimizerScalars coupled_scalars(const Hyper& hyper);
/// Adam's: rate and eps carry the bias corrections.
kernels::OptimizerScalars adam_scalars(const Hyper& hyper, int64_t step);

// optim/x.cpp
extern const Family kAdam, kAdamW, kAdemamix, kLion, kSgd, kLars, kLamb, kRmsprop, kAdagrad;

}  // namespace nibble::optim
