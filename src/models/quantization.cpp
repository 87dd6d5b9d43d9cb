// The skip rules, and quantization_config to and from JSON.
#include "models/quantization.h"

#include <algorithm>
#include <initializer_list>
#include <regex>

#include "base/error.h"
#include "models/config_reader.h"
#include "models/module_tree.h"

namespace nibble::models {
namespace {

// Entries come from files: matching must not take exponential time.
#ifdef __GLIBCXX__
constexpr auto kSyntax = std::regex::ECMAScript | std::regex_constants::__polynomial;
#else
constexpr auto kSyntax = std::regex::ECMAScript;
#endif

/// One skip entry, ready to match.
class SkipEntry {
 public:
  explicit SkipEntry(const std::string& text) : suffix_(text) {
    require(text.size() <= 1000, "llm_int8_skip_modules: found an entry of {} characters, expected at most 1000",
            text.size());
    try {
      start_ = std::regex("(?:" + text + ")", kSyntax);
    } catch (const std::regex_error& error) {
      fail(ErrorCode::invalid_argument, "llm_int8_skip_modules: '{}' is no regular expression: {}", text, error.what());
    }
  }

  /// A match from the start must end at a module boundary: before or after a dot, or at the end.
  bool matches(std::string_view module) const {
    if (module.ends_with(suffix_)) return true;
    for (size_t end = 0; end <= module.size(); ++end) {
      const bool is_boundary = end == module.size() || module[end] == '.' || (end > 0 && module[end - 1] == '.');
      if (is_boundary && std::regex_match(module.begin(), module.begin() + end, start_)) return true;
    }
    return false;
  }

 private:
  std::string suffix_;
  std::regex start_;
};

std::vector<SkipEntry> compile(const std::vector<std::string>& entries) { return {entries.begin(), entries.end()}; }

bool any_matches(const std::vector<SkipEntry>& entries, std::string_view module) {
  return std::any_of(entries.begin(), entries.end(), [&](const SkipEntry& entry) { return entry.matches(module); });
}

std::string without_weight(const std::string& name) {
  return name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name;
}

/// A type by name; `allowed` are the ones that make sense at `key`.
DType read_dtype(const ConfigReader& reader, std::string_view key, DType fallback,
                 std::initializer_list<DType> allowed) {
  const auto name = reader.find_text(key);
  if (!name) return fallback;
  std::string expected;
  for (const DType dtype : allowed) {
    if (*name == name_of(dtype)) return dtype;
    expected += (expected.empty() ? "" : ", ") + std::string(name_of(dtype));
  }
  reader.refuse(key, *name, expected);
}

void read_skip_modules(const Json& object, std::string_view source, BitsAndBytesConfig& config) {
  const auto found = object.find("llm_int8_skip_modules");
  if (found == object.end() || found->is_null()) return;
  std::vector<std::string> modules;
  bool is_list = found->is_array();
  for (const Json& entry : *found) {
    is_list = is_list && entry.is_string();
    if (is_list) modules.push_back(entry.get<std::string>());
  }
  if (!is_list) fail(ErrorCode::corrupt_file, "{}: key 'llm_int8_skip_modules': expected a list of strings", source);
  config.llm_int8_skip_modules = std::move(modules);
}

}  // namespace

std::vector<std::string> default_skipped_modules(const ModelSpec& spec) {
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  for (const auto& [tied, original] : spec.tied) {
    add(without_weight(tied));
    add(without_weight(original));
  }
  std::string last;
  for_each_module(spec, [&](const std::string& path, const ModuleSpec& module) {
    if (!module.parameters.empty()) last = join(path, module.parameters.back().name);
  });
  add(without_weight(last));
  add(spec.head);
  for (const std::string& name : spec.keep_in_fp32) add(name);
  std::sort(names.begin(), names.end());
  return names;
}

bool is_skipped(std::string_view module, const std::vector<std::string>& entries) {
  return any_matches(compile(entries), module);
}

std::regex compile_modules(const std::string& modules) {
  require(modules.size() <= 1000, "--modules: found {} characters, expected at most 1000", modules.size());
  try {
    return std::regex(modules, kSyntax);
  } catch (const std::regex_error& error) {
    fail(ErrorCode::invalid_argument, "--modules: '{}' is no regular expression: {}", modules, error.what());
  }
}

QuantizationPlan plan_quantization(const ModelSpec& spec, const BitsAndBytesConfig& config,
                                   const std::optional<std::string>& modules) {
  QuantizationPlan plan;
  plan.config = config;
  if (!config.is_quantizable()) return plan;
  std::vector<std::string> names =
      config.llm_int8_skip_modules ? *config.llm_int8_skip_modules : default_skipped_modules(spec);
  names.insert(names.end(), spec.keep_in_fp32.begin(), spec.keep_in_fp32.end());
  const auto entries = compile(names);
  std::optional<std::regex> chosen;
  if (modules) chosen = compile_modules(*modules);
  for_each_module(spec, [&](const std::string& path, const ModuleSpec& module) {
    if (module.kind != ModuleKind::linear) return;
    const bool is_left_out = chosen && !std::regex_match(path, *chosen);
    if (is_left_out) names.push_back(path);
    if (is_left_out || any_matches(entries, path))
      plan.skipped.push_back(path);
    else
      plan.quantized.insert(path);
  });
  if (modules) {
    require(!plan.quantized.empty(), "--modules: '{}' matches none of {} linear layers that may be quantized", *modules,
            plan.skipped.size());
    plan.config.llm_int8_skip_modules = std::move(names);  // so that whoever loads it makes the same choice
  }
  return plan;
}

std::optional<BitsAndBytesConfig> read_quantization_config(const Json& config, std::string_view source) {
  const Json* object = ConfigReader(config, source).find_object("quantization_config");
  if (!object) return std::nullopt;
  const ConfigReader reader(*object, source);
  const std::string method = reader.text_or("quant_method", "bitsandbytes");
  if (method != "bitsandbytes")
    fail(ErrorCode::unsupported, "{}: quant_method '{}' is not supported; expected 'bitsandbytes'", source, method);
  BitsAndBytesConfig result;
  result.load_in_8bit = reader.flag_or("load_in_8bit", reader.flag_or("_load_in_8bit", false));
  result.load_in_4bit = reader.flag_or("load_in_4bit", reader.flag_or("_load_in_4bit", false));
  if (result.load_in_8bit == result.load_in_4bit)
    fail(ErrorCode::corrupt_file, "{}: quantization_config: found load_in_8bit and load_in_4bit both {}, expected one",
         source, result.load_in_4bit);
  result.llm_int8_threshold = reader.number_or("llm_int8_threshold", 6.0, 0, 1e30);
  result.llm_int8_enable_fp32_cpu_offload = reader.flag_or("llm_int8_enable_fp32_cpu_offload", false);
  result.bnb_4bit_quant_type = reader.text_or("bnb_4bit_quant_type", "fp4");
  result.bnb_4bit_use_double_quant = reader.flag_or("bnb_4bit_use_double_quant", false);
  result.bnb_4bit_blocksize = reader.integer_or("bnb_4bit_blocksize", 64, 32, 4096);
  result.bnb_4bit_compute_dtype =
      read_dtype(reader, "bnb_4bit_compute_dtype", DType::f32, {DType::f32, DType::bf16, DType::f16});
  result.bnb_4bit_quant_storage = read_dtype(reader, "bnb_4bit_quant_storage", DType::u8,
                                             {DType::u8, DType::i8, DType::f16, DType::bf16, DType::f32, DType::f64});
  read_skip_modules(*object, source, result);
  return result;
}

Json quantization_config_json(const BitsAndBytesConfig& config) {
  Json json = Json::object();
  json["_load_in_4bit"] = config.load_in_4bit;
  json["_load_in_8bit"] = config.load_in_8bit;
  if (config.load_in_4bit && config.bnb_4bit_blocksize != 64) json["bnb_4bit_blocksize"] = config.bnb_4bit_blocksize;
  json["bnb_4bit_compute_dtype"] = name_of(config.bnb_4bit_compute_dtype);
  json["bnb_4bit_quant_storage"] = name_of(config.bnb_4bit_quant_storage);
  json["bnb_4bit_quant_type"] = config.bnb_4bit_quant_type;
  json["bnb_4bit_use_double_quant"] = config.bnb_4bit_use_double_quant;
  json["llm_int8_enable_fp32_cpu_offload"] = config.llm_int8_enable_fp32_cpu_offload;
  json["llm_int8_has_fp16_weight"] = false;
  json["llm_int8_skip_modules"] = config.llm_int8_skip_modules ? Json(*config.llm_int8_skip_modules) : Json();
  json["llm_int8_threshold"] = config.llm_int8_threshold;
  json["load_in_4bit"] = config.load_in_4bit;
  json["load_in_8bit"] = config.load_in_8bit;
  json["quant_method"] = "bitsandbytes";
  return json;
}

std::optional<DType> config_dtype(const Json& config, std::string_view source) {
  const ConfigReader reader(config, source);
  for (const std::string_view key : {"dtype", "torch_dtype"})
    if (reader.find_text(key)) return read_dtype(reader, key, DType::f32, {DType::f32, DType::f16, DType::bf16});
  return std::nullopt;
}

}  // namespace nibble::models
