// RMSprop (Tieleman & Hinton, 2012): weight decay is part of the gradient.
#include "optim/family.h"

namespace nibble::optim {

constinit const Family kRmsprop{.name = "RMSprop",
                                .rule = kernels::OptimizerRule::rmsprop,
                                .betas = 1,
                                .has_variance = false,
                                .has_slow = false,
                                .is_paged_too = false,
                                .options = {"alpha", "eps"},
                                .defaults = {.lr = 1e-2, .betas = {0.99}, .eps = 1e-8},
                                .scalars = [](const Hyper& hyper, int64_t) { return coupled_scalars(hyper); }};

}  // namespace nibble::optim
