// LARS (You, Gitman & Ginsburg, 2017): SGD with momentum whose update is no longer than max_unorm times the parameter.
#include "optim/family.h"

namespace nibble::optim {

constinit const Family kLars{.name = "LARS",
                             .rule = kernels::OptimizerRule::momentum,
                             .betas = 1,
                             .has_variance = false,
                             .has_slow = false,
                             .is_paged_too = false,
                             .options = {"momentum", "max_unorm"},
                             .defaults = {.lr = kNotGiven, .betas = {kNotGiven}, .max_unorm = 0.02},
                             .scalars = [](const Hyper& hyper, int64_t) { return coupled_scalars(hyper); }};

}  // namespace nibble::optim
