// The MLP of a layer, or its experts.
#include <array>

#include "models/layer.h"

namespace nibble::models {

void run_mlp(Pass& pass, const Layer& layer, const MlpWeights& weights, const float* x, int64_t rows, float* sum,
             bool accumulate) {
  const MlpSpec& spec = layer.spec->mlp;
  const bool is_gated = weights.gate.rows > 0 || weights.gate_up.rows > 0;
  const int64_t width = spec.intermediate_size, stride = is_gated ? 2 * width : width;
  float* first = pass.get(Slot::gate_up, rows * stride);  // (rows, [gate | up]), or (rows, up)
  if (weights.gate_up.rows > 0) {
    const std::array calls{nn::LinearCall{&weights.gate_up, first, stride}};
    nn::run_linear(pass.backend, x, rows, calls, pass.batch_invariant);
  } else if (is_gated) {
    const std::array calls{nn::LinearCall{&weights.gate, first, stride},
                           nn::LinearCall{&weights.up, first + width, stride}};
    nn::run_linear(pass.backend, x, rows, calls, pass.batch_invariant);
  } else {
    const std::array calls{nn::LinearCall{&weights.up, first, stride}};
    nn::run_linear(pass.backend, x, rows, calls, pass.batch_invariant);
  }
  float* activated = pass.get(Slot::activated, rows * width);
  pass.backend.kernels().activate(
      pass.backend.context_for(rows * width),
      {first, is_gated ? first + width : nullptr, stride, rows, width, spec.activation, activated});
  const std::array down{nn::LinearCall{&weights.down, sum, pass.model.hidden_size, accumulate}};
  nn::run_linear(pass.backend, activated, rows, down, pass.batch_invariant);
}

void run_experts(Pass& pass, const Layer& layer, const float* x, float* sum) {
  const ExpertsSpec& spec = layer.spec->mlp.experts;
  const int64_t m = pass.tokens, hidden = pass.model.hidden_size;
  const kernels::Kernels& kernels = pass.backend.kernels();
  float* logits = pass.get(Slot::routed, m * spec.count);
  const std::array router{nn::LinearCall{&layer.router, logits, spec.count}};
  nn::run_linear(pass.backend, x, m, router, pass.batch_invariant);
  std::vector<int32_t> ids(static_cast<size_t>(m * spec.top_k));
  std::vector<float> weights(ids.size());
  kernels.route_experts(pass.backend.context_for(m * spec.count),
                        {logits, m, spec.count, spec.top_k, spec.is_normalized, ids.data(), weights.data()});
  std::vector<int32_t> rows;
  std::vector<float> row_weights;
  for (int64_t expert = 0; expert < spec.count; ++expert) {
    rows.clear();
    row_weights.clear();
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] != expert) continue;
      rows.push_back(static_cast<int32_t>(static_cast<int64_t>(i) / spec.top_k));
      row_weights.push_back(weights[i]);
    }
    if (rows.empty()) continue;
    const auto count = static_cast<int64_t>(rows.size());
    float* in = pass.get(Slot::expert_in, m * hidden);
    float* out = pass.get(Slot::expert_out, m * hidden);
    const kernels::Context& context = pass.backend.context_for(count * hidden);
    kernels.embed(context, {x, DType::f32, rows.data(), count, hidden, 1, in});
    run_mlp(pass, layer, layer.mlps[static_cast<size_t>(expert)], in, count, out, false);
    kernels.scatter_add_rows(context, {out, rows.data(), row_weights.data(), count, hidden, sum});
  }
}

}  // namespace nibble::models
