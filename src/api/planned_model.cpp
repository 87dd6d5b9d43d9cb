// Reading a config for a plan, and the shape that a parameter count stands for.
#include "api/planned_model.h"

#include "api/model_source.h"
#include "base/checked.h"
#include "models/quantization.h"
#include "models/registry.h"
#include "models/summary.h"

namespace nibble::api {
namespace {

/// A Llama of about `parameters`: 12 l h^2 + 2 v h with h = 128 l and a vocabulary of 32000.
Json llama_config(int64_t parameters) {
  constexpr double kVocab = 32000;
  int64_t layers = 1;
  const auto size = [&](int64_t l) {
    const double hidden = 128.0 * double(l);
    return 12.0 * double(l) * hidden * hidden + 2 * kVocab * hidden;
  };
  while (layers < 1000 && size(layers + 1) <= double(parameters) * 1.02) ++layers;
  const int64_t hidden = 128 * layers;
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", hidden},
          {"intermediate_size", ceil_div(hidden * 8, 3 * 128) * 128},
          {"num_hidden_layers", layers},
          {"num_attention_heads", layers},
          {"num_key_value_heads", layers},
          {"max_position_embeddings", int64_t{1} << 20},
          {"vocab_size", static_cast<int64_t>(kVocab)},
          {"rms_norm_eps", 1e-5},
          {"tie_word_embeddings", false}};
}

}  // namespace

PlannedModel planned_model(const std::filesystem::path& model, const BitsAndBytesConfig& quantization,
                           std::optional<DType> dtype) {
  const ModelSource source = open_config(resolve_model(model.string()));
  PlannedModel planned{models::build_spec(source.config, source.config_name), quantization, DType::f16};
  if (const auto stored = models::read_quantization_config(source.config, source.config_name))
    planned.quantization = *stored;
  if (dtype)
    planned.dtype = *dtype;
  else if (const auto found = models::config_dtype(source.config, source.config_name))
    planned.dtype = *found;
  return planned;
}

PlannedModel planned_model(int64_t parameters, const BitsAndBytesConfig& quantization, std::optional<DType> dtype) {
  require(parameters > 0, "parameters: found {}, expected a positive number", parameters);
  const Json config = llama_config(parameters);
  PlannedModel planned{models::build_spec(config, "assumed Llama shape"), quantization, dtype.value_or(DType::f16)};
  const int64_t assumed =
      models::summarize(planned.spec, models::plan_quantization(planned.spec, {}), planned.dtype).num_parameters;
  planned.scale = double(parameters) / double(assumed);
  return planned;
}

}  // namespace nibble::api
