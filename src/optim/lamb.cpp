// LAMB (You et al., 2020): Adam whose update, before lr and without weight decay, is no longer than max_unorm times the
// parameter.
#include "optim/family.h"

namespace nibble::optim {

constinit const Family kLamb{.name = "LAMB",
                             .rule = kernels::OptimizerRule::adam,
                             .betas = 2,
                             .has_variance = true,
                             .has_slow = false,
                             .is_paged_too = false,
                             .options = {"betas", "eps", "max_unorm"},
                             .defaults = {.lr = 1e-3, .betas = {0.9, 0.999}, .eps = 1e-8, .max_unorm = 1},
                             .scalars = adam_scalars};

}  // namespace nibble::optim
