// Binds a layer's modules to their weights, and runs its blocks around the residual stream.
#include "models/layer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "models/module_tree.h"

namespace nibble::models {
namespace {

MlpWeights bind_mlp(const ops::Backend& backend, const ModelSpec& model, const MlpSpec& spec, const std::string& prefix,
                    const Weights& weights, const Updates* updates) {
  const auto linear = [&](const std::string& name) {
    return name.empty() ? nn::Linear{} : bind_linear(backend, model, weights, prefix + name, updates);
  };
  return {linear(spec.gate), linear(spec.up), linear(spec.gate_up), linear(spec.down)};
}

/// A small parameter as kernels read it.
Tensor as_float(const ops::Backend& backend, const Tensor& x, float factor = 1) {
  if (x.dtype() == DType::f32 && factor == 1) return x;
  const Tensor host = backend.to_host(x).to(DType::f32);  // may be the parameter in memory
  Tensor result(DType::f32, host.shape());
  for (int64_t i = 0; i < host.count(); ++i) result.as<float>()[i] = host.as<float>()[i] * factor;
  return backend.to_device(result);
}

AttentionWeights bind_attention(const ops::Backend& backend, const ModelSpec& model, const AttentionSpec& spec,
                                const std::string& prefix, const Weights& weights, const Updates* updates) {
  const auto norm = [&](const NormSpec& n) { return bind_norm(backend, weights, prefix, n, updates); };
  const auto linear = [&](const std::string& name) {
    return name.empty() ? nn::Linear{} : bind_linear(backend, model, weights, prefix + name, updates);
  };
  return {norm(spec.q_norm), norm(spec.k_norm), linear(spec.q),  linear(spec.k),
          linear(spec.v),    linear(spec.qkv),  linear(spec.out)};
}

/// x after `norm`, in `slot`, or in the residual stream itself; x if there is no norm.
nn::ConstValues normed(Pass& pass, const std::optional<nn::Norm>& norm, Slot slot, bool in_place) {
  if (!norm) return pass.hidden;
  const nn::Values out = in_place ? pass.hidden : pass.get_values(slot, pass.tokens * pass.model.hidden_size);
  nn::run_norm(pass.backend, *norm, pass.hidden, pass.tokens, out);
  return out;
}

/// The residual stream, for a block that norms it itself.
nn::ConstValues deferred(Pass& pass, const std::optional<nn::Norm>& norm) {
  pass.deferred_norm = norm ? &*norm : nullptr;
  return pass.hidden;
}

/// Runs a block whose result is added to the residual stream, normed by itself or with the sum if the spec says so.
template <typename Block>
void add_block(Pass& pass, const std::optional<nn::Norm>& out_norm, const std::optional<nn::Norm>& sum_norm,
               const Block& block) {
  if (out_norm) {
    float* branch = pass.get(Slot::branch, pass.tokens * pass.model.hidden_size);
    block(branch, false);
    nn::add_norm(pass.backend, *out_norm, branch, pass.tokens, pass.hidden);
  } else {
    block(pass.hidden, true);
  }
  if (sum_norm) nn::run_norm(pass.backend, *sum_norm, pass.hidden, pass.tokens, pass.hidden);
}

/// (count, size): the parameters of modules PATH.0, PATH.1, ...
Tensor stacked(const ops::Backend& backend, const Weights& weights, const std::string& path, const char* parameter,
               int64_t count, const Updates* updates) {
  Tensor all;
  for (int64_t i = 0; i < count; ++i) {
    const Tensor one =
        backend.to_host(parameter_of(weights, updates, path + "." + std::to_string(i) + parameter)).to(DType::f32);
    if (!all) all = Tensor(DType::f32, {count, one.count()});
    std::copy_n(one.as<float>(), one.count(), all.as<float>() + i * one.count());
  }
  return backend.to_device(all);
}

}  // namespace

const Tensor& parameter_of(const Weights& weights, const Updates* updates, const std::string& name) {
  if (updates)
    if (const auto found = updates->parameters.find(name); found != updates->parameters.end()) return found->second;
  return weights.dense(name);
}

std::optional<nn::Norm> bind_norm(const ops::Backend& backend, const Weights& weights, const std::string& prefix,
                                  const NormSpec& spec, const Updates* updates) {
  if (!spec) return std::nullopt;
  const std::string path = prefix + spec.module;
  nn::Norm norm;
  norm.kind = spec.kind;
  norm.eps = static_cast<float>(spec.eps);
  norm.weight_offset = spec.weight_offset * spec.scale;
  if (spec.count > 0) {
    norm.weight = stacked(backend, weights, path, ".weight", spec.count, updates);
    if (weights.contains(path + ".0.bias")) norm.bias = stacked(backend, weights, path, ".bias", spec.count, updates);
    return norm;
  }
  if (weights.contains(path + ".weight")) {
    norm.weight = as_float(backend, parameter_of(weights, updates, path + ".weight"), spec.scale);
  } else {
    norm.weight = Tensor(DType::f32, {spec.size});
    std::fill_n(norm.weight.as<float>(), spec.size, spec.scale);
    norm.weight = backend.to_device(norm.weight);
  }
  if (weights.contains(path + ".bias"))
    norm.bias = as_float(backend, parameter_of(weights, updates, path + ".bias"), spec.scale);
  return norm;
}

nn::Linear bind_linear(const ops::Backend& backend, const ModelSpec& model, const Weights& weights,
                       const std::string& path, const Updates* updates) {
  const ModuleSpec* module = find_module(model, path);
  if (!module || module->kind != ModuleKind::linear) fail(ErrorCode::internal, "no linear module '{}'", path);
  nn::Linear layer;
  const bool is_replaced = updates && updates->parameters.contains(path + ".weight");
  layer.weight = is_replaced ? nn::Weight(nn::DenseWeight{parameter_of(weights, updates, path + ".weight")})
                             : weights.get(path + ".weight");
  if (weights.contains(path + ".bias")) layer.bias = as_float(backend, parameter_of(weights, updates, path + ".bias"));
  const Shape shape = weight_shape(*module);
  layer.rows = shape[0];
  layer.cols = shape[1];
  if (!updates) return layer;
  if (const auto found = updates->weights.find(path); found != updates->weights.end()) layer.weight = found->second;
  if (const auto found = updates->layers.find(path); found != updates->layers.end()) layer.update = &found->second;
  return layer;
}

Layer bind_layer(const ops::Backend& backend, const ModelSpec& model, const LayerSpec& spec, const std::string& prefix,
                 const Weights& weights, const Updates* updates) {
  const auto norm = [&](const NormSpec& n) { return bind_norm(backend, weights, prefix, n, updates); };
  const std::string& router = spec.mlp.experts.router;
  Layer layer{.spec = &spec,
              .attention_norm = norm(spec.attention_norm),
              .attention_out_norm = norm(spec.attention_out_norm),
              .attention_sum_norm = norm(spec.attention_sum_norm),
              .cross_norm = norm(spec.cross_norm),
              .mlp_norm = norm(spec.mlp_norm),
              .mlp_out_norm = norm(spec.mlp_out_norm),
              .mlp_sum_norm = norm(spec.mlp_sum_norm),
              .attention = bind_attention(backend, model, spec.attention, prefix, weights, updates),
              .cross = bind_attention(backend, model, spec.cross, prefix, weights, updates),
              .router = router.empty() ? nn::Linear{} : bind_linear(backend, model, weights, prefix + router, updates),
              .mlps = {}};
  const ExpertsSpec& experts = spec.mlp.experts;
  for (int64_t e = 0; e < experts.count; ++e)
    layer.mlps.push_back(
        bind_mlp(backend, model, spec.mlp, prefix + experts.prefix + std::to_string(e) + ".", weights, updates));
  if (layer.mlps.empty()) layer.mlps.push_back(bind_mlp(backend, model, spec.mlp, prefix, weights, updates));
  return layer;
}

bool run_projections(Pass& pass, nn::ConstValues x, int64_t rows, std::span<const nn::LinearCall> calls,
                     const nn::Gate* gate) {
  const nn::Norm* norm = std::exchange(pass.deferred_norm, nullptr);
  if ((norm || gate) && nn::run_fused_linear(pass.backend, norm, x, rows, calls, gate, pass.batch_invariant))
    return gate != nullptr;
  if (norm) {
    const nn::Values out = pass.get_values(Slot::normed, rows * norm->cols());
    nn::run_norm(pass.backend, *norm, x, rows, out);
    x = out;
    if (gate && nn::run_fused_linear(pass.backend, nullptr, x, rows, calls, gate, pass.batch_invariant)) return true;
  }
  nn::run_linear(pass.backend, x, rows, calls, pass.batch_invariant);
  return false;
}

void run_layer(Pass& pass, const Layer& layer, int64_t index) {
  const LayerSpec& spec = *layer.spec;
  const bool is_simple = !spec.keeps_normed && !spec.is_parallel;
  const nn::ConstValues x = is_simple ? deferred(pass, layer.attention_norm)
                                      : normed(pass, layer.attention_norm, Slot::normed, spec.keeps_normed);
  nn::ConstValues mlp_x;
  if (spec.is_parallel) mlp_x = layer.mlp_norm ? normed(pass, layer.mlp_norm, Slot::normed_mlp, false) : x;
  add_block(pass, layer.attention_out_norm, layer.attention_sum_norm,
            [&](float* sum, bool accumulate) { run_attention(pass, layer, index, x, sum, accumulate); });
  if (spec.has_cross()) {
    const nn::ConstValues cross_x = normed(pass, layer.cross_norm, Slot::normed, false);
    run_cross_attention(pass, layer, index, cross_x, pass.hidden, true);
  }
  if (!mlp_x.data)
    mlp_x = is_simple && spec.mlp.experts.count == 0 ? deferred(pass, layer.mlp_norm)
                                                     : normed(pass, layer.mlp_norm, Slot::normed, spec.keeps_normed);
  if (spec.mlp.experts.count > 0) return run_experts(pass, layer, mlp_x, pass.hidden);
  add_block(pass, layer.mlp_out_norm, layer.mlp_sum_norm, [&](float* sum, bool accumulate) {
    run_mlp(pass, layer, layer.mlps[0], mlp_x, pass.tokens, sum, accumulate);
  });
}

}  // namespace nibble::models
