// A mixture of experts, with gradients: which tokens visit which, and the sum of what they bring back.
#pragma once

#include <cstdint>
#include <vector>

#include "autograd/tape.h"
#include "ops/backend.h"

namespace nibble::ops {

/// The tokens of each expert, in their order.
struct Routing {
  autograd::Var weights;                     // (tokens, top_k)
  std::vector<std::vector<int32_t>> rows;    // of each expert: tokens
  std::vector<std::vector<int32_t>> places;  // and their places in `weights`
};
/// logits (tokens, experts); contract: kernels::RouteExpertsArgs.
Routing route_experts(autograd::Tape& tape, const Backend& backend, const autograd::Var& logits, int64_t top_k,
                      bool is_normalized);

/// How evenly tokens visit the experts, over the layers of one pass. Loss (Fedus et al., 2021, eq. 4, as transformers
/// computes it): experts * sum over experts of (visits / tokens) * (probabilities / tokens); 1 per choice where even.
struct ExpertLoad {
  std::vector<double> visits, probabilities;  // sums, of each expert
  int64_t tokens = 0;

  void add(const Backend& backend, const Tensor& logits, const Routing& routing);
  double loss() const;
};
/// The gradient of weight * load.loss(), which is complete when the way back begins, into the logits (tokens, experts).
void record_load_gradient(autograd::Tape& tape, const Backend& backend, const autograd::Var& logits,
                          const ExpertLoad& load, float weight);

/// (rows.size(), cols): rows of x, none of them twice.
autograd::Var take_rows(autograd::Tape& tape, const Backend& backend, const autograd::Var& x,
                        const std::vector<int32_t>& rows);

/// (tokens, cols): row routing.rows[e][i] gets weights[routing.places[e][i]] * outputs[e] row i. An expert without
/// tokens has no output.
autograd::Var sum_experts(autograd::Tape& tape, const Backend& backend, const Routing& routing,
                          const std::vector<autograd::Var>& outputs, int64_t cols);

}  // namespace nibble::ops
