// SGD with momentum (Polyak, 1964), or with 0, which keeps its state all the same: weight decay is part of the
// gradient. lr and momentum must be given.
#include "optim/family.h"

namespace nibble::optim {

constinit const Family kSgd{.name = "SGD",
                            .rule = kernels::OptimizerRule::momentum,
                            .betas = 1,
                            .has_variance = false,
                            .has_slow = false,
                            .is_paged_too = false,
                            .options = {"momentum"},
                            .defaults = {.lr = kNotGiven, .betas = {kNotGiven}},
                            .scalars = [](const Hyper& hyper, int64_t) { return coupled_scalars(hyper); }};

}  // namespace nibble::optim
