// A LoRA adapter of a model: one low-rank update per targeted linear layer.
#pragma once

#include <memory>
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
};

/// Layers in the order of the module tree.
struct Adapter {
  LoraConfig config;
  std::vector<AdapterLayer> layers;

  /// The update of a module, or nullptr.
  const nn::Lora* find(std::string_view module) const;
  int64_t parameter_count() const;
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

/// A fresh adapter; `seed` draws it.
Adapter create_adapter(const models::ModelSpec& spec, const LoraConfig& config, uint64_t seed);

/// The adapter where kernels reach it: itself, or a copy in the GPU's memory with gradients of its own.
Adapter to_device(const ops::Backend& backend, const Adapter& adapter);

/// The updates that the decoder applies, as the adapter is now.
std::shared_ptr<const models::Updates> updates_of(const Adapter& adapter);

/// "trainable params: 1,792 || all params: 64,576 || trainable%: 2.7750", as PEFT prints it; `base` is the number of
/// parameters without the adapter.
std::string trainable_parameters_text(const Adapter& adapter, int64_t base);

}  // namespace nibble::adapters
