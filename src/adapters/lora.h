// A LoRA adapter of a model: one low-rank update per targeted linear layer.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/decoder.h"
#include "models/spec.h"
#include "nibble/adapter.h"
#include "nn/lora.h"

namespace nibble::adapters {

struct AdapterLayer {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  nn::Lora lora;       // a (r, in) and b (out, r), both f32
  /// PiSSA: the weight that the update stands beside, in place of the model's, where kernels reach it.
  std::optional<nn::Weight> residual = {};
  Tensor start_a = {}, start_b = {};  // and what a and b were then, if the original weight is that and the residual
};

/// A parameter of the model that is trained itself, in f32; the weight of a linear layer as (out, in).
struct TrainedParameter {
  std::string name;  // "lm_head.weight"
  autograd::Var value;
  bool is_copy;  // of modules_to_save: beside the one of the base model
};

struct NamedVariable {
  std::string name;
  autograd::Var variable;
};

/// Layers in the order of the module tree.
struct Adapter {
  LoraConfig config;
  std::vector<AdapterLayer> layers;
  std::vector<TrainedParameter> parameters = {};  // in the same order
  bool is_whole = false;                          // no adapter: every parameter of the model is trained

  /// The layer of a module, or nullptr.
  const AdapterLayer* find_layer(std::string_view module) const;
  /// The update of a module, or nullptr.
  const nn::Lora* find(std::string_view module) const;
  /// The trained parameter, or null.
  autograd::Var find_parameter(std::string_view name) const;
  int64_t parameter_count() const;
  /// Everything that is trained, in an order that stays.
  std::vector<NamedVariable> variables() const;
  /// The same, to be replaced.
  std::vector<autograd::Var*> slots();
};

/// The linear layers that `config` targets, by PEFT's rules. Errors: invalid_argument if a target matches nothing, or
/// for a broken expression.
std::vector<std::string> targeted_modules(const models::ModelSpec& spec, const LoraConfig& config);

/// r and scale of one module, after the patterns.
struct RankAndScale {
  int64_t rank;
  float scale;
};
RankAndScale rank_and_scale(const LoraConfig& config, const std::string& module);

/// The names of the parameters that `config` trains beside the updates, and whether they are copies.
std::vector<std::pair<std::string, bool>> trained_parameters(const models::ModelSpec& spec, const LoraConfig& config);

/// A fresh adapter; `seed` draws it. What comes from the model's weights is added by add_from_model.
Adapter create_adapter(const models::ModelSpec& spec, const LoraConfig& config, uint64_t seed);
/// Trained parameters and DoRA's lengths, as they are in the model. Errors: unsupported for a quantized parameter.
void add_from_model(Adapter& adapter, const models::Decoder& model);
/// Full training: every parameter, in f32. Errors: unsupported if the model is quantized.
Adapter whole_model(const models::Decoder& model);

/// The adapter where kernels reach it: itself, or a copy in the GPU's memory with gradients of its own.
Adapter to_device(const ops::Backend& backend, const Adapter& adapter);

/// The updates that the decoder applies, as the adapter is now.
std::shared_ptr<const models::Updates> updates_of(const Adapter& adapter, const models::Decoder& model);

/// "trainable params: 1,792 || all params: 64,576 || trainable%: 2.7750", as PEFT prints it; `base` is the number of
/// parameters without the adapter.
std::string trainable_parameters_text(const Adapter& adapter, int64_t base);

}  // namespace nibble::adapters
