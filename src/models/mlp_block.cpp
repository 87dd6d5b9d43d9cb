// The MLP of a layer, or its experts.
#include <array>

#include "models/layer.h"

namespace nibble::models {

void run_mlp(Pass& pass, const Layer& layer, const MlpWeights& weights, nn::ConstValues x, int64_t rows, float* sum,
             bool accumulate) {
  const MlpSpec& spec = layer.spec->mlp;
  const bool is_gated = weights.gate.rows > 0 || weights.gate_up.rows > 0;
  const int64_t width = spec.intermediate_size, stride = is_gated ? 2 * width : width;
  const nn::Values first = pass.get_values(Slot::gate_up, rows * stride);  // (rows, [gate | up]), or (rows, up)
  const nn::Values activated = pass.get_values(Slot::activated, rows * width);
  bool is_activated = false;
  if (weights.gate_up.rows > 0) {
    const std::array calls{nn::LinearCall{&weights.gate_up, first, stride}};
    run_projections(pass, x, rows, calls);
  } else if (is_gated) {
    const std::array calls{nn::LinearCall{&weights.gate, first, stride},
                           nn::LinearCall{&weights.up, first.at(width), stride}};
    const nn::Gate gate{spec.activation, activated};
    is_activated = run_projections(pass, x, rows, calls, &gate);
  } else {
    const std::array calls{nn::LinearCall{&weights.up, first, stride}};
    run_projections(pass, x, rows, calls);
  }
  if (!is_activated)
    pass.backend.kernels().activate(pass.backend.context_for(rows * width),
                                    {first.data, is_gated ? first.at(width).data : nullptr, stride, rows, width,
                                     spec.activation, activated.data, first.dtype, activated.dtype});
  const std::array down{nn::LinearCall{&weights.down, sum, pass.model.hidden_size, accumulate}};
  nn::run_linear(pass.backend, activated, rows, down, pass.batch_invariant);
}

namespace {

/// Which tokens visit each expert: those of expert e are rows[begin[e]] .. rows[begin[e + 1] - 1], in their order.
struct Routing {
  std::vector<int32_t> rows;
  std::vector<float> weights;
  std::vector<int64_t> begin;
};

Routing sort_by_expert(const Pass& pass, const ExpertsSpec& spec, const int32_t* ids, const float* weights) {
  const auto count = static_cast<size_t>(pass.tokens * spec.top_k);
  std::vector<int32_t> chosen(count);
  std::vector<float> chosen_weights(count);
  pass.backend.download(chosen.data(), ids, static_cast<int64_t>(count * sizeof(int32_t)));
  pass.backend.download(chosen_weights.data(), weights, static_cast<int64_t>(count * sizeof(float)));
  Routing routing;
  for (int64_t expert = 0; expert < spec.count; ++expert) {
    routing.begin.push_back(static_cast<int64_t>(routing.rows.size()));
    for (size_t i = 0; i < count; ++i) {
      if (chosen[i] != expert) continue;
      routing.rows.push_back(static_cast<int32_t>(static_cast<int64_t>(i) / spec.top_k));
      routing.weights.push_back(chosen_weights[i]);
    }
  }
  routing.begin.push_back(static_cast<int64_t>(routing.rows.size()));
  return routing;
}

}  // namespace

void run_experts(Pass& pass, const Layer& layer, nn::ConstValues x, float* sum) {
  const ExpertsSpec& spec = layer.spec->mlp.experts;
  const int64_t m = pass.tokens, hidden = pass.model.hidden_size;
  const kernels::Kernels& kernels = pass.backend.kernels();
  float* logits = pass.get(Slot::routed, m * spec.count);
  const std::array router{nn::LinearCall{&layer.router, logits, spec.count}};
  nn::run_linear(pass.backend, x, m, router, pass.batch_invariant);
  const int64_t count = m * spec.top_k;
  const auto as_ints = [&](Slot slot) { return reinterpret_cast<int32_t*>(pass.get(slot, count)); };
  int32_t* ids = as_ints(Slot::expert_ids);
  float* weights = pass.get(Slot::expert_weights, count);
  kernels.route_experts(pass.backend.context_for(m * spec.count),
                        {logits, m, spec.count, spec.top_k, spec.is_normalized, ids, weights});
  const Routing routing = sort_by_expert(pass, spec, ids, weights);
  int32_t* rows = as_ints(Slot::expert_rows);
  float* row_weights = pass.get(Slot::expert_row_weights, count);
  pass.backend.upload(rows, routing.rows.data(), count * static_cast<int64_t>(sizeof(int32_t)));
  pass.backend.upload(row_weights, routing.weights.data(), count * static_cast<int64_t>(sizeof(float)));
  for (int64_t expert = 0; expert < spec.count; ++expert) {
    const int64_t begin = routing.begin[static_cast<size_t>(expert)];
    const int64_t chosen = routing.begin[static_cast<size_t>(expert) + 1] - begin;
    if (chosen == 0) continue;
    const nn::Values in = pass.get_values(Slot::expert_in, m * hidden);
    float* out = pass.get(Slot::expert_out, m * hidden);
    const kernels::Context& context = pass.backend.context_for(chosen * hidden);
    kernels.embed(context, {x.data, x.dtype, rows + begin, chosen, hidden, 1, in.data, false, in.dtype});
    run_mlp(pass, layer, layer.mlps[static_cast<size_t>(expert)], in, chosen, out, false);
    kernels.scatter_add_rows(context, {out, rows + begin, row_weights + begin, chosen, hidden, sum});
  }
}

}  // namespace nibble::models
