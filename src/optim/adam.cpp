// Adam (Kingma & Ba, 2015) and AdamW (Loshchilov & Hutter, 2019): one rule; weight decay is decoupled in both, as in
// bitsandbytes, and 0 by default in Adam.
#include "optim/family.h"

namespace nibble::optim {
namespace {

constexpr Family kRule{.name = "Adam",
                       .rule = kernels::OptimizerRule::adam,
                       .betas = 2,
                       .has_variance = true,
                       .has_slow = false,
                       .is_paged_too = true,
                       .options = {"betas", "eps"},
                       .defaults = {.lr = 1e-3, .betas = {0.9, 0.999}, .eps = 1e-8},
                       .scalars = adam_scalars};

}  // namespace

constinit const Family kAdam = kRule;

constinit const Family kAdamW = [] {
  Family family = kRule;
  family.name = "AdamW";
  family.defaults.weight_decay = 1e-2;
  return family;
}();

}  // namespace nibble::optim
