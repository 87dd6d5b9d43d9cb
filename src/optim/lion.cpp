// Lion (Chen et al., 2023): the sign of an average; weight decay is decoupled.
#include "optim/family.h"

namespace nibble::optim {

constinit const Family kLion{.name = "Lion",
                             .rule = kernels::OptimizerRule::lion,
                             .betas = 2,
                             .has_variance = false,
                             .has_slow = false,
                             .is_paged_too = true,
                             .options = {"betas"},
                             .defaults = {.lr = 1e-4, .betas = {0.9, 0.99}},
                             .scalars = [](const Hyper& hyper, int64_t) { return decoupled_scalars(hyper); }};

}  // namespace nibble::optim
