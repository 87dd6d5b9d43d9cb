// Adagrad (Duchi, Hazan & Singer, 2011): weight decay is part of the gradient.
#include "optim/family.h"

namespace nibble::optim {

constinit const Family kAdagrad{.name = "Adagrad",
                                .rule = kernels::OptimizerRule::adagrad,
                                .betas = 0,
                                .has_variance = false,
                                .has_slow = false,
                                .is_paged_too = false,
                                .options = {"eps"},
                                .defaults = {.lr = 1e-2, .eps = 1e-10},
                                .scalars = [](const Hyper& hyper, int64_t) { return coupled_scalars(hyper); }};

}  // namespace nibble::optim
