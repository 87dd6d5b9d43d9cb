// Chooses by name and shape, then streams.
#include "models/foreign_model.h"

#include <algorithm>
#include <array>
#include <regex>
#include <unordered_set>

#include "base/error.h"
#include "models/quantization.h"
#include "models/quantized_tensors.h"
#include "models/weights.h"

namespace nibble::models {
namespace {

constexpr std::string_view kWeight = ".weight";

/// The module of a two-dimensional float ".weight", or nothing.
std::optional<std::string> matrix_module(const TensorInfo& info) {
  if (!info.is_supported || !is_float(info.dtype) || info.shape.size() != 2 || !info.name.ends_with(kWeight))
    return std::nullopt;
  return info.name.substr(0, info.name.size() - kWeight.size());
}

/// Embedding tables and output heads, by the names that transformers' models give them.
bool is_left_alone(const std::string& module) {
  const size_t dot = module.rfind('.');
  std::string last = dot == std::string::npos ? module : module.substr(dot + 1);
  std::transform(last.begin(), last.end(), last.begin(), [](unsigned char c) { return std::tolower(c); });
  static constexpr std::array<std::string_view, 12> kLast{
      "wte",       "wpe",        "shared",     "relative_attention_bias", "lm_head", "score", "proj_out",
      "embed_out", "classifier", "qa_outputs", "output_projection",       "router"};
  if (last.find("embed") != std::string::npos) return true;
  if (std::find(kLast.begin(), kLast.end(), last) != kLast.end()) return true;
  // Heads of several layers (lm_head.dense, cls.predictions.decoder, classifier.out_proj), and BLIP-2's Q-Former, which
  // transformers keeps in fp32.
  for (const std::string_view part : {"lm_head.", "cls.", "classifier.", "qa_outputs.", "qformer."})
    if (module.starts_with(part) || module.find("." + std::string(part)) != std::string::npos) return true;
  return false;
}

std::unordered_set<std::string> names_of_weights(const ForeignPlan& plan) {
  std::unordered_set<std::string> names;
  for (const std::string& module : plan.quantized) names.insert(module + std::string(kWeight));
  return names;
}

}  // namespace

ForeignPlan plan_foreign(const Checkpoint& checkpoint, const BitsAndBytesConfig& config,
                         const std::optional<std::string>& modules) {
  ForeignPlan plan{config, {}};
  const std::vector<std::string> skipped = config.llm_int8_skip_modules.value_or(std::vector<std::string>{});
  std::optional<std::regex> chosen;
  if (modules) chosen = compile_modules(*modules);
  std::vector<std::string> left;
  for (const TensorInfo& info : checkpoint.tensors()) {
    const auto module = matrix_module(info);
    if (!module) continue;
    const bool is_wanted =
        chosen ? std::regex_match(*module, *chosen) : !(config.llm_int8_skip_modules ? false : is_left_alone(*module));
    (is_wanted && !is_skipped(*module, skipped) ? plan.quantized : left).push_back(*module);
  }
  require(!plan.quantized.empty(), "no module is left to quantize: found {} two-dimensional weights{}", left.size(),
          modules ? ", none of which --modules matches" : "");
  plan.config.llm_int8_skip_modules = std::move(left);
  return plan;
}

std::vector<PlannedTensor> plan_foreign_tensors(const Checkpoint& checkpoint, const ForeignPlan& plan,
                                                std::optional<DType> dtype) {
  const auto weights = names_of_weights(plan);
  std::vector<PlannedTensor> tensors;
  for (const TensorInfo& info : checkpoint.tensors()) {
    const DType plain = is_float(info.dtype) ? dtype.value_or(info.dtype) : info.dtype;
    if (!info.is_supported)
      fail(ErrorCode::unsupported, "tensor '{}': found type {}, which cannot be copied", info.name, info.dtype_name);
    if (!weights.contains(info.name)) {
      tensors.push_back({info.name, plain, info.shape});
    } else if (plan.config.load_in_8bit) {
      plan_int8(info.name.substr(0, info.name.size() - kWeight.size()), info.name, info.shape, tensors);
    } else {
      const ops::Tensor4Bit weight = blueprint(plan.config, info.shape, plain);
      plan_4bit(info.name, weight, state_json_room(weight), plan.config.bnb_4bit_quant_storage, tensors);
    }
  }
  return tensors;
}

void write_foreign(const Checkpoint& checkpoint, const ForeignPlan& plan, std::optional<DType> dtype,
                   const ops::Backend& backend, SafetensorsWriter& writer, const Progress& progress) {
  const auto weights = names_of_weights(plan);
  Steps steps{progress, "quantizing", checkpoint.tensors().size()};
  for (const TensorInfo& info : checkpoint.tensors()) {
    steps.next();
    Tensor tensor = checkpoint.get(info.name);
    if (is_float(info.dtype) && dtype) tensor = tensor.to(*dtype);
    if (!weights.contains(info.name)) {
      writer.write(info.name, tensor.bytes());
    } else {
      const nn::Weight weight = nn::to_host(backend, quantize_weight(backend, tensor, plan.config));
      if (const auto* packed = std::get_if<nn::Weight4Bit>(&weight))
        write_4bit(info.name, packed->weight, state_json_room(packed->weight), writer);
      else
        write_int8(info.name.substr(0, info.name.size() - kWeight.size()), info.name,
                   std::get<nn::WeightInt8>(weight).weight, writer);
    }
    checkpoint.release(info.name);
  }
  steps.finish();
}

}  // namespace nibble::models
