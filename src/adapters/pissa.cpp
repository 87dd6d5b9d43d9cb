// Starts, and the way back from residual weights to the original ones.
#include "adapters/pissa.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "adapters/factorize.h"
#include "base/error.h"
#include "models/layer.h"
#include "models/module_tree.h"
#include "nn/dora.h"

namespace nibble::adapters {
namespace {

constexpr std::string_view kName = "pissa", kRounds = "pissa_niter_", kOrthonormal = "olora";

/// B and A as `start` says: for PiSSA scale B A is the best product for `weight`.
Factors principal_part(const ops::Backend& backend, const Tensor& weight, const AdapterLayer& layer,
                       const std::string& start, uint64_t seed) {
  const int64_t rank = layer.lora.a->value.dim(0), most = std::min(weight.dim(0), weight.dim(1));
  require(rank <= most, "r: found {} for '{}', expected at most {}, the weight's smaller side, for {}", rank,
          layer.module, most, start);
  const Tensor matrix = backend.to_device(weight);
  if (start == kOrthonormal) return factorize_first_columns(backend, matrix, rank);
  const std::optional<int> rounds = pissa_rounds(start);
  Factors factors =
      rounds ? factorize(backend, matrix, rank, seed, *rounds + 1) : factorize_settled(backend, matrix, rank, seed);
  const float share = 1 / std::sqrt(layer.lora.scale);
  for (Tensor* side : {&factors.left, &factors.right})
    for (int64_t i = 0; i < side->count(); ++i) side->as<float>()[i] *= share;
  return factors;
}

/// weight - scale b a, (rows, cols).
Tensor residual_of(const ops::Backend& backend, const Tensor& weight, const Factors& factors, float scale) {
  const int64_t rank = factors.right.dim(0), rows = weight.dim(0), cols = weight.dim(1);
  const auto scaled = [&](const Tensor& from, float factor) {
    Tensor copy(DType::f32, from.shape());
    std::transform(from.as<float>(), from.as<float>() + from.count(), copy.as<float>(),
                   [factor](float value) { return factor * value; });
    return backend.to_device(copy);
  };
  Tensor result = scaled(weight, 1);
  const Tensor b = scaled(factors.left, -scale), a = backend.to_device(factors.right);
  backend.kernels().input_gradient(backend.context(), {b.as<float>(),
                                                       rank,
                                                       rows,
                                                       rank,
                                                       cols,
                                                       {kernels::WeightView::Kind::dense, a.data(), DType::f32},
                                                       result.as<float>(),
                                                       true});
  return backend.to_host(result);
}

/// A layer's weight before it was quantized, if `original` has it; else as it is. In f32, in main memory.
Tensor full_weight(const models::Decoder& model, const Checkpoint& original, const std::string& path,
                   const nn::Linear& held) {
  const models::ModuleSpec& module = *find_module(model.spec(), path);
  const auto stored =
      models::find_stored(original, model.spec(), path + ".weight", module.parameters[0].shape, module.is_transposed);
  if (stored.is_quantized() || std::holds_alternative<nn::DenseWeight>(held.weight))
    return model.backend().to_host(nn::plain_weight(model.backend(), held));
  const Tensor weight = original.get(stored.name).to(model.weights().dtype()).to(DType::f32);
  return module.is_transposed ? weight.transposed() : weight;
}

/// One above the other.
Tensor stacked_rows(const Tensor& top, const Tensor& bottom) {
  Tensor result(DType::f32, {top.dim(0) + bottom.dim(0), top.dim(1)});
  std::copy_n(top.as<float>(), top.count(), result.as<float>());
  std::copy_n(bottom.as<float>(), bottom.count(), result.as<float>() + top.count());
  return result;
}

LoraConfig times_rank(LoraConfig config, bool is_twice) {
  const double factor = is_twice ? 2 : 0.5, alpha_factor = config.use_rslora ? std::sqrt(factor) : factor;
  const auto turn = [&](int64_t& rank) { rank = is_twice ? 2 * rank : rank / 2; };
  turn(config.r);
  config.lora_alpha *= alpha_factor;
  for (auto& [pattern, rank] : config.rank_pattern) turn(rank);
  for (auto& [pattern, alpha] : config.alpha_pattern) alpha *= alpha_factor;
  config.init_lora_weights = "default";
  return config;
}

}  // namespace

bool is_pissa(const std::string& init_lora_weights) { return init_lora_weights.starts_with(kName); }

bool is_taken_off(const std::string& init_lora_weights) {
  return is_pissa(init_lora_weights) || init_lora_weights == kOrthonormal;
}

std::optional<int> pissa_rounds(const std::string& init_lora_weights) {
  if (init_lora_weights == kName) return std::nullopt;
  const std::string_view number =
      std::string_view(init_lora_weights).substr(std::min(kRounds.size(), init_lora_weights.size()));
  int rounds = -1;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), rounds);
  require(init_lora_weights.starts_with(kRounds) && error == std::errc() && end == number.data() + number.size() &&
              rounds >= 0 && rounds <= 1000,
          "init_lora_weights: found '{}', expected pissa, or pissa_niter_N with N from 0 to 1000", init_lora_weights);
  return rounds;
}

void start_from_principal_part(Adapter& adapter, const models::Decoder& model, const Checkpoint& original,
                               uint64_t seed) {
  const ops::Backend& backend = model.backend();
  for (AdapterLayer& layer : adapter.layers) {
    const nn::Linear held = models::bind_linear(backend, model.spec(), model.weights(), layer.module);
    const Tensor weight = full_weight(model, original, layer.module, held);
    Factors factors = principal_part(backend, weight, layer, adapter.config.init_lora_weights, seed);
    const Tensor residual = residual_of(backend, weight, factors, layer.lora.scale).to(model.weights().dtype());
    if (std::holds_alternative<nn::DenseWeight>(held.weight)) {
      layer.residual = nn::DenseWeight{backend.to_device(residual)};
      layer.start_a = factors.right;
      layer.start_b = factors.left;
    } else {
      layer.residual = models::quantize_weight(backend, residual, model.weights().plan().config);
    }
    std::memcpy(layer.lora.a->value.data(), factors.right.data(), factors.right.bytes().size());
    std::memcpy(layer.lora.b->value.data(), factors.left.data(), factors.left.bytes().size());
  }
}

Adapter onto_original(const Adapter& adapter) {
  Adapter result = adapter;
  bool has_start = false;
  for (AdapterLayer& layer : result.layers) {
    if (!layer.start_a) continue;
    has_start = true;
    Tensor negative(DType::f32, layer.start_b.shape());
    std::transform(layer.start_b.as<float>(), layer.start_b.as<float>() + negative.count(), negative.as<float>(),
                   std::negate<float>());
    layer.lora.a = autograd::parameter(stacked_rows(layer.lora.a->value, layer.start_a));
    layer.lora.b =
        autograd::parameter(stacked_rows(layer.lora.b->value.transposed(), negative.transposed()).transposed());
    layer.residual.reset();
    layer.start_a = layer.start_b = {};
  }
  if (has_start) result.config = times_rank(result.config, true);
  return result;
}

Adapter trained_half(const Adapter& adapter) {
  Adapter result = adapter;
  for (AdapterLayer& layer : result.layers) {
    const int64_t rank = layer.lora.a->value.dim(0) / 2;
    layer.lora.a = autograd::parameter(layer.lora.a->value.rows(0, rank));
    layer.lora.b = autograd::parameter(layer.lora.b->value.transposed().rows(0, rank).transposed());
  }
  result.config = times_rank(result.config, false);
  return result;
}

void take_principal_part_off(Adapter& adapter, const ops::Backend& backend,
                             const std::function<Tensor(const std::string& module)>& weight_of) {
  const std::string& start = adapter.config.init_lora_weights;
  if (!is_taken_off(start)) return;
  if (is_pissa(start) && pissa_rounds(start))
    fail(ErrorCode::unsupported,
         "init_lora_weights: an adapter that started as '{}' stands beside weights that only its run knows: save it in "
         "PEFT with path_initial_model_for_weight_conversion",
         start);
  for (AdapterLayer& layer : adapter.layers) {
    Factors factors = principal_part(backend, weight_of(layer.module), layer, start, 1);
    layer.start_a = std::move(factors.right);
    layer.start_b = std::move(factors.left);
  }
  adapter = onto_original(adapter);
}

}  // namespace nibble::adapters
