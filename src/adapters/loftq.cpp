// LoftQ's start: the error of quantization, layer by layer.
#include "adapters/loftq.h"

#include <cmath>

#include "adapters/factorize.h"
#include "base/error.h"
#include "models/layer.h"
#include "models/module_tree.h"
#include "nn/dora.h"

namespace nibble::adapters {

void start_from_quantization_error(Adapter& adapter, const models::Decoder& model, const Checkpoint& original,
                                   uint64_t seed) {
  const ops::Backend& backend = model.backend();
  for (AdapterLayer& layer : adapter.layers) {
    const models::ModuleSpec& module = *find_module(model.spec(), layer.module);
    const nn::Linear held = models::bind_linear(backend, model.spec(), model.weights(), layer.module);
    const auto stored = models::find_stored(original, model.spec(), layer.module + ".weight",
                                            module.parameters[0].shape, module.is_transposed);
    require(!stored.is_quantized() && !std::holds_alternative<nn::DenseWeight>(held.weight),
            "init_lora_weights: loftq starts from the error of quantization, but '{}' is {}", layer.module,
            stored.is_quantized() ? "quantized in the checkpoint already: load the original with load_in_4bit"
                                  : "not quantized: load the model with load_in_4bit or load_in_8bit");
    Tensor weight = original.get(stored.name).to(model.weights().dtype()).to(DType::f32);
    if (module.is_transposed) weight = weight.transposed();
    const Tensor quantized = backend.to_host(nn::plain_weight(backend, held));
    Tensor error(DType::f32, weight.shape());
    for (int64_t i = 0; i < error.count(); ++i) error.as<float>()[i] = weight.as<float>()[i] - quantized.as<float>()[i];
    Factors factors = factorize(backend, backend.to_device(error), layer.lora.a->value.dim(0), seed);
    const float share = 1 / std::sqrt(layer.lora.scale);
    for (Tensor* side : {&factors.left, &factors.right})
      for (int64_t i = 0; i < side->count(); ++i) side->as<float>()[i] *= share;
    layer.lora.a->value = std::move(factors.right);
    layer.lora.b->value = std::move(factors.left);
    original.release(stored.name);
  }
}

}  // namespace nibble::adapters
