// Each block of a layer as ops on the tape.
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/experts.h"
#include "ops/rows.h"
#include "train/model.h"
#include "train/pass.h"

namespace nibble::train {

using autograd::Tape;
using autograd::Var;

/// Rows of an MLP at a time where a batch has at least twice as many and layers are checkpointed.
constexpr int64_t kMlpRows = 8192;

Var TrainableModel::run_attention(Tape& tape, const Pass& pass, size_t index, const Var& x) const {
  const models::AttentionSpec& spec = layers_[index].spec->attention;
  const AttentionLinears& linears = linears_[index].attention;
  ops::SplitHeads heads;
  if (linears.qkv.layer->rows > 0) {
    heads = ops::split_heads(tape, base_.backend(), run_linear(tape, pass, linears.qkv, x), spec.qkv_groups,
                             spec.heads / spec.qkv_groups, spec.kv_heads / spec.qkv_groups, spec.head_dim);
  } else {
    heads = {run_linear(tape, pass, linears.q, x), run_linear(tape, pass, linears.k, x),
             run_linear(tape, pass, linears.v, x)};
  }
  heads.q = run_norm(tape, layers_[index].attention.q_norm, heads.q);
  heads.k = run_norm(tape, layers_[index].attention.k_norm, heads.k);
  if (spec.rope) {
    const Pass::Angles& of = pass.angles[*spec.rope];
    const ops::RopeAngles angles{of.cos.as<float>(), of.sin.as<float>(), of.minus_sin.as<float>(),
                                 ropes_[*spec.rope].spec().rotary_dim, ropes_[*spec.rope].spec().interleaved};
    heads.q = ops::rope(tape, base_.backend(), heads.q, spec.heads, spec.head_dim, angles);
    heads.k = ops::rope(tape, base_.backend(), heads.k, spec.kv_heads, spec.head_dim, angles);
  }
  const Bias bias = spec.relative_bias ? pass.relative_biases[*spec.relative_bias] : Bias{};
  const Var attended = ops::attention(
      tape, base_.backend(), heads.q, heads.k, heads.v,
      index < encoder_layers_ ? pass.batch.source_lengths : pass.batch.lengths,
      {spec.heads, spec.kv_heads, spec.head_dim, spec.scale, spec.window, spec.has_alibi ? alibi_.as<float>() : nullptr,
       spec.softcap, base_.spec().alibi.dtype, base_.spec().alibi.scale, spec.is_causal,
       bias.table ? bias.table.as<float>() : nullptr, bias.span, bias.variable});
  return run_linear(tape, pass, linears.out, attended);
}

Var TrainableModel::run_cross_attention(Tape& tape, const Pass& pass, size_t index, const Var& x) const {
  const models::AttentionSpec& spec = layers_[index].spec->cross;
  const AttentionLinears& linears = linears_[index].cross;
  const Var q = run_linear(tape, pass, linears.q, x), k = run_linear(tape, pass, linears.k, pass.encoded),
            v = run_linear(tape, pass, linears.v, pass.encoded);
  ops::AttentionShape shape{spec.heads, spec.kv_heads, spec.head_dim, spec.scale};
  shape.is_causal = false;
  const Var attended =
      ops::attention(tape, base_.backend(), q, k, v, pass.batch.lengths, shape, pass.batch.source_lengths);
  return run_linear(tape, pass, linears.out, attended);
}

Var TrainableModel::run_mlp(Tape& tape, const Pass& pass, const models::MlpSpec& spec, const MlpLinears& linears,
                            const Var& x, uint64_t salt, bool needs_value) const {
  const ops::Backend& backend = base_.backend();
  if (linears.gate_up.layer->rows > 0) {
    const Var both = run_linear(tape, pass, linears.gate_up, x, salt);
    return run_linear(tape, pass, linears.down, ops::activate_gated(tape, backend, both, spec.activation), salt,
                      needs_value);
  }
  if (linears.gate.layer->rows > 0) {
    const Var gate = run_linear(tape, pass, linears.gate, x, salt), up = run_linear(tape, pass, linears.up, x, salt);
    return run_linear(tape, pass, linears.down, ops::activate_times(tape, backend, gate, up, spec.activation), salt,
                      needs_value);
  }
  const Var up = run_linear(tape, pass, linears.up, x, salt);
  return run_linear(tape, pass, linears.down, ops::activate(tape, backend, up, spec.activation), salt, needs_value);
}

Var TrainableModel::run_mlp_rows(Tape& tape, const Pass& pass, size_t index, const Var& x, bool needs_value) const {
  const models::MlpSpec& spec = layers_[index].spec->mlp;
  const MlpLinears& linears = linears_[index].mlps[0];
  const bool is_long = has_gradient_checkpointing_ && x->value.dim(0) >= 2 * kMlpRows;
  if (!is_long) return run_mlp(tape, pass, spec, linears, x, 0, needs_value);
  return ops::checkpoint_rows(tape, base_.backend(), x, kMlpRows, x->value.dim(1), needs_value,
                              [this, &pass, &spec, &linears](Tape& again, const Var& rows, int64_t first) {
                                return run_mlp(again, pass, spec, linears, rows, static_cast<uint64_t>(first),
                                               !again.is_recording());
                              });
}

Var TrainableModel::run_experts(Tape& tape, const Pass& pass, size_t index, const Var& x) const {
  const models::MlpSpec& spec = layers_[index].spec->mlp;
  const LayerLinears& linears = linears_[index];
  const ops::Backend& backend = base_.backend();
  const Var logits = run_linear(tape, pass, linears.router, x);
  const ops::Routing routing =
      ops::route_experts(tape, backend, logits, spec.experts.top_k, spec.experts.is_normalized);
  if (pass.is_training && spec.experts.balance_loss > 0) {
    const bool is_again = has_gradient_checkpointing_ && tape.is_recording();
    if (!is_again) pass.load.add(backend, logits->value, routing);
    const double weight = spec.experts.balance_loss * static_cast<double>(pass.batch.target_count());
    ops::record_load_gradient(tape, backend, logits, pass.load, static_cast<float>(weight) * pass.scale);
  }
  std::vector<Var> outputs(linears.mlps.size());
  for (size_t e = 0; e < outputs.size(); ++e)
    if (!routing.rows[e].empty())
      outputs[e] =
          run_mlp(tape, pass, spec, linears.mlps[e], ops::take_rows(tape, backend, x, routing.rows[e]), 0, true);
  return ops::sum_experts(tape, backend, routing, outputs, x->value.dim(1));
}

Var TrainableModel::run_layer(Tape& tape, const Pass& pass, size_t index, const Var& x) const {
  const models::Layer& layer = layers_[index];
  const models::LayerSpec& spec = *layer.spec;
  const ops::Backend& backend = base_.backend();
  // What a checkpoint computes anew is what the way back needs, and the sum at a layer's end is not.
  const bool is_again = has_gradient_checkpointing_ && tape.is_recording();
  const bool needs_value = !is_again || layer.mlp_out_norm || layer.mlp_sum_norm;
  const Var attention_x = run_norm(tape, layer.attention_norm, x);
  Var mlp_x;
  if (spec.is_parallel) mlp_x = layer.mlp_norm ? run_norm(tape, layer.mlp_norm, x) : attention_x;
  const Var attended = run_norm(tape, layer.attention_out_norm, run_attention(tape, pass, index, attention_x));
  Var sum =
      run_norm(tape, layer.attention_sum_norm, ops::add(tape, backend, spec.keeps_normed ? attention_x : x, attended));
  if (spec.has_cross())
    sum = ops::add(tape, backend, sum, run_cross_attention(tape, pass, index, run_norm(tape, layer.cross_norm, sum)));
  if (!mlp_x) mlp_x = run_norm(tape, layer.mlp_norm, sum);
  if (spec.mlp.experts.count > 0) return ops::add(tape, backend, sum, run_experts(tape, pass, index, mlp_x));
  const Var branch = run_norm(tape, layer.mlp_out_norm, run_mlp_rows(tape, pass, index, mlp_x, needs_value));
  return run_norm(tape, layer.mlp_sum_norm,
                  ops::add(tape, backend, spec.keeps_normed ? mlp_x : sum, branch, needs_value));
}

}  // namespace nibble::train
