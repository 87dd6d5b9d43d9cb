// The list of activations.
#include "models/activations.h"

#include <array>

namespace nibble::models {

const ActivationName& read_activation(const ConfigReader& config, std::string_view key, std::string_view fallback) {
  using kernels::Activation;
  static constexpr std::array kList{
      ActivationName{"silu", Activation::silu, "SiLUActivation"},
      ActivationName{"swish", Activation::silu, "SiLU"},
      ActivationName{"gelu", Activation::gelu, "GELUActivation"},
      ActivationName{"gelu_new", Activation::gelu_tanh, "NewGELUActivation"},
      ActivationName{"gelu_pytorch_tanh", Activation::gelu_tanh, "GELUTanh"},
      ActivationName{"gelu_fast", Activation::gelu_tanh, "FastGELUActivation"},
      ActivationName{"quick_gelu", Activation::quick_gelu, "QuickGELUActivation"},
      ActivationName{"relu", Activation::relu, "ReLU"},
      ActivationName{"tanh", Activation::tanh_, "Tanh"},
  };
  const std::string name = config.text_or(key, fallback);
  for (const ActivationName& entry : kList)
    if (entry.name == name) return entry;
  fail(ErrorCode::unsupported, "{}: key '{}': found '{}', expected a known activation such as silu or gelu",
       config.source(), key, name);
}

}  // namespace nibble::models
