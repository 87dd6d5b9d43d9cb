// Which linear layers are quantized, and how: the rules of transformers' bitsandbytes integration.
#pragma once

#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/json.h"
#include "models/spec.h"
#include "nibble/model.h"

namespace nibble::models {

struct QuantizationPlan {
  BitsAndBytesConfig config;
  std::unordered_set<std::string> quantized;  // module names: "model.layers.0.self_attn.q_proj"
  std::vector<std::string> skipped;           // linear layers that stay as they are

  bool is_quantized(const std::string& module) const { return quantized.contains(module); }
};

/// Every linear layer but those that `config.llm_int8_skip_modules`, or the default list, names; with `modules`, a
/// regular expression, only those whose whole names match. Errors: invalid_argument for a broken expression, or one
/// that matches nothing.
QuantizationPlan plan_quantization(const ModelSpec& spec, const BitsAndBytesConfig& config,
                                   const std::optional<std::string>& modules = {});

/// The expression of `--modules`. Errors: invalid_argument.
std::regex compile_modules(const std::string& modules);

/// transformers 5.x: tied weights, the last parameter and the output head; ModelSpec::keep_in_fp32, which is skipped
/// whatever `config` names.
std::vector<std::string> default_skipped_modules(const ModelSpec& spec);

/// A skip entry is a regular expression for the start of the name up to a dot, or a plain suffix of it.
/// Errors: invalid_argument for an entry that is no regular expression.
bool is_skipped(std::string_view module, const std::vector<std::string>& entries);

/// The quantization_config of a config.json, or nullopt. Errors: corrupt_file, unsupported (another quant_method).
std::optional<BitsAndBytesConfig> read_quantization_config(const Json& config, std::string_view source);

/// As transformers writes it.
Json quantization_config_json(const BitsAndBytesConfig& config);

/// torch_dtype or dtype of a config.json. Errors: corrupt_file.
std::optional<DType> config_dtype(const Json& config, std::string_view source);

}  // namespace nibble::models
