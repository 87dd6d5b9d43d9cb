// The keys of peft.LoraConfig and the names of its state dictionary.
#include "adapters/peft_files.h"

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "adapters/pissa.h"
#include "base/error.h"
#include "base/output.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_writer.h"
#include "models/module_tree.h"

namespace nibble::adapters {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";

/// Keys that change what is computed, with the values under which they change nothing.
struct Neutral {
  std::string_view key;
  std::array<std::string_view, 2> values;
};
constexpr std::array kNeutral{Neutral{"lora_bias", {"false", "null"}},
                              Neutral{"layer_replication", {"null", "[]"}},
                              Neutral{"trainable_token_indices", {"null", "[]"}},
                              Neutral{"target_parameters", {"null", "[]"}},
                              Neutral{"use_qalora", {"false", "null"}},
                              Neutral{"use_bdlora", {"null", "false"}},
                              Neutral{"arrow_config", {"null", "{}"}},
                              Neutral{"alora_invocation_tokens", {"null", "[]"}},
                              Neutral{"kasa_config", {"null", "{}"}},
                              Neutral{"monteclora_config", {"null", "{}"}},
                              Neutral{"velora_config", {"null", "{}"}}};

std::variant<std::vector<std::string>, std::string> read_names(const Json& json, const char* key,
                                                               std::string_view source) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return std::vector<std::string>{};
  if (found->is_string()) return found->get<std::string>();
  std::vector<std::string> names;
  const bool is_list = found->is_array() &&
                       std::all_of(found->begin(), found->end(), [](const Json& entry) { return entry.is_string(); });
  if (!is_list) fail(ErrorCode::corrupt_file, "{}: key '{}': expected a string or a list of strings", source, key);
  for (const Json& entry : *found) names.push_back(entry.get<std::string>());
  return names;
}

template <typename Value>
std::map<std::string, Value> read_patterns(const Json& json, const char* key, std::string_view source) {
  std::map<std::string, Value> patterns;
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return patterns;
  if (!found->is_object()) fail(ErrorCode::corrupt_file, "{}: key '{}': expected an object", source, key);
  for (const auto& item : found->items()) patterns[item.key()] = get_value<Value>(*found, item.key(), source);
  return patterns;
}

std::vector<int64_t> read_layers(const Json& json, std::string_view source) {
  const auto found = json.find("layers_to_transform");
  if (found == json.end() || found->is_null()) return {};
  if (found->is_number_integer()) return {found->get<int64_t>()};
  std::vector<int64_t> layers;
  bool is_list = found->is_array();
  for (const Json& entry : *found) {
    is_list = is_list && entry.is_number_integer();
    if (is_list) layers.push_back(entry.get<int64_t>());
  }
  if (!is_list)
    fail(ErrorCode::corrupt_file, "{}: key 'layers_to_transform': expected a whole number or a list of them", source);
  return layers;
}

std::string name_of_tensor(const std::string& module, char side) {
  return std::string(kPrefix) + module + ".lora_" + side + ".weight";
}

/// Whole numbers without a point, as PEFT keeps what it was given.
Json number(double value) {
  const auto whole = static_cast<int64_t>(value);
  return static_cast<double>(whole) == value ? Json(whole) : Json(value);
}

Json names_json(const std::variant<std::vector<std::string>, std::string>& names) {
  if (const auto* text = std::get_if<std::string>(&names)) return *text;
  const auto& list = std::get<std::vector<std::string>>(names);
  return list.empty() ? Json() : Json(list);
}

/// One side of a module's update, checked.
Tensor read_side(const Checkpoint& checkpoint, const std::string& name, const Shape& expected) {
  const TensorInfo* info = checkpoint.find(name);
  if (!info) fail(ErrorCode::corrupt_file, "tensor '{}' is missing; expected shape {}", name, to_string(expected));
  if (info->shape != expected)
    fail(ErrorCode::invalid_argument, "tensor '{}': found shape {}, expected {} for this model", name,
         to_string(info->shape), to_string(expected));
  const Tensor stored = checkpoint.get(name);
  Tensor copy(DType::f32, expected);  // trained in place: never the mapped file
  const Tensor converted = stored.to(DType::f32);
  std::copy_n(converted.as<float>(), converted.count(), copy.as<float>());
  return copy;
}

constexpr std::string_view kSideA = ".lora_A.weight", kSideB = ".lora_B.weight", kMagnitude = ".lora_magnitude_vector";

/// What a file holds: modules with updates, and names of parameters that replace the model's.
struct Stored {
  std::vector<std::string> modules;
  std::vector<std::pair<std::string, std::string>> parameters;  // name in the model, in the file
};

Stored list_stored(const Checkpoint& checkpoint) {
  constexpr std::string_view kWrapped = ".base_layer.";  // a bias of a module that has an update
  Stored stored;
  for (const TensorInfo& info : checkpoint.tensors()) {
    const std::string& name = info.name;
    if (!name.starts_with(kPrefix))
      fail(ErrorCode::unsupported, "tensor '{}': expected a name that starts with {}", name, kPrefix);
    std::string inner = name.substr(kPrefix.size());
    if (inner.ends_with(kSideA)) {
      stored.modules.push_back(inner.substr(0, inner.size() - kSideA.size()));
    } else if (!inner.ends_with(kSideB) && !inner.ends_with(kMagnitude)) {
      if (const size_t at = inner.find(kWrapped); at != std::string::npos) inner.erase(at, kWrapped.size() - 1);
      stored.parameters.emplace_back(std::move(inner), name);
    }
  }
  return stored;
}

/// The shape of a parameter in files, and whether that is the other way round in memory.
struct FileShape {
  Shape shape;
  bool is_transposed;
};
std::optional<FileShape> shape_of_parameter(const models::ModelSpec& spec, const std::string& name) {
  const size_t dot = name.rfind('.');
  const models::ModuleSpec* module = dot == std::string::npos ? nullptr : find_module(spec, name.substr(0, dot));
  if (!module) return std::nullopt;
  for (const models::ParameterSpec& parameter : module->parameters)
    if (parameter.name == name.substr(dot + 1))
      return FileShape{parameter.shape, module->is_transposed && parameter.name == "weight"};
  return std::nullopt;
}

/// "q_proj.bias", or "q_proj.base_layer.bias" where the module has an update.
std::string file_name_of(const Adapter& adapter, const std::string& name) {
  const size_t dot = name.rfind('.');
  const bool is_wrapped = adapter.find(name.substr(0, dot)) != nullptr;
  return std::string(kPrefix) + name.substr(0, dot) + (is_wrapped ? ".base_layer" : "") + name.substr(dot);
}

/// The tensors of adapter_model.safetensors, as they lie in the file.
std::vector<std::pair<std::string, Tensor>> file_tensors(const Adapter& adapter, const models::ModelSpec& spec) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const AdapterLayer& layer : adapter.layers) {
    tensors.emplace_back(name_of_tensor(layer.module, 'A'), layer.lora.a->value);
    tensors.emplace_back(name_of_tensor(layer.module, 'B'), layer.lora.b->value);
    if (layer.lora.magnitude)
      tensors.emplace_back(std::string(kPrefix) + layer.module + std::string(kMagnitude), layer.lora.magnitude->value);
  }
  for (const TrainedParameter& parameter : adapter.parameters) {
    const auto shape = shape_of_parameter(spec, parameter.name);
    const Tensor& value = parameter.value->value;
    tensors.emplace_back(file_name_of(adapter, parameter.name),
                         shape && shape->is_transposed ? value.transposed() : value);
  }
  return tensors;
}

/// Trained biases and modules, in the order that trained_parameters gives them.
void read_parameters(Adapter& adapter, const models::ModelSpec& spec, const Checkpoint& checkpoint,
                     const Stored& stored) {
  std::vector<std::pair<std::string, bool>> expected = trained_parameters(spec, adapter.config);
  for (const auto& [name, file_name] : stored.parameters) {
    const bool is_known =
        std::any_of(expected.begin(), expected.end(), [&, n = &name](const auto& entry) { return entry.first == *n; });
    if (!is_known) expected.emplace_back(name, true);  // PEFT adds embeddings that were targeted or resized
  }
  for (const auto& [name, is_copy] : expected) {
    const auto found = std::find_if(stored.parameters.begin(), stored.parameters.end(),
                                    [&, n = &name](const auto& entry) { return entry.first == *n; });
    const std::string file_name = found == stored.parameters.end() ? file_name_of(adapter, name) : found->second;
    const auto shape = shape_of_parameter(spec, name);
    if (!shape) fail(ErrorCode::invalid_argument, "tensor '{}': the model has no parameter '{}'", file_name, name);
    Tensor value = read_side(checkpoint, file_name, shape->shape);
    adapter.parameters.push_back(
        {name, autograd::parameter(shape->is_transposed ? value.transposed() : std::move(value)), is_copy});
  }
}

}  // namespace

LoraConfig parse_lora_config(const Json& json, std::string_view source) {
  if (!json.is_object())
    fail(ErrorCode::corrupt_file, "{}: found {}, expected a JSON object", source, json.type_name());
  const std::string type = get_value<std::string>(json, "peft_type", source);
  if (type != "LORA") fail(ErrorCode::unsupported, "{}: key 'peft_type': found '{}', expected LORA", source, type);
  for (const Neutral& entry : kNeutral) {
    const auto found = json.find(entry.key);
    if (found == json.end()) continue;
    const std::string text = found->dump();
    if (text != entry.values[0] && text != entry.values[1])
      fail(ErrorCode::unsupported, "{}: key '{}': found {}, expected {}", source, entry.key, text.substr(0, 60),
           entry.values[0]);
  }
  LoraConfig config;
  config.r = find_value<int64_t>(json, "r", source).value_or(config.r);
  config.lora_alpha = find_value<double>(json, "lora_alpha", source).value_or(config.lora_alpha);
  config.lora_dropout = find_value<double>(json, "lora_dropout", source).value_or(0);
  config.use_rslora = find_value<bool>(json, "use_rslora", source).value_or(false);
  config.target_modules = read_names(json, "target_modules", source);
  config.exclude_modules = read_names(json, "exclude_modules", source);
  config.rank_pattern = read_patterns<int64_t>(json, "rank_pattern", source);
  config.alpha_pattern = read_patterns<double>(json, "alpha_pattern", source);
  config.layers_to_transform = read_layers(json, source);
  config.bias = find_value<std::string>(json, "bias", source).value_or("none");
  config.use_dora = find_value<bool>(json, "use_dora", source).value_or(false);
  const auto found_start = json.find("init_lora_weights");
  const std::string start = found_start != json.end() && found_start->is_string() ? *found_start : "default";
  if (is_taken_off(start)) config.init_lora_weights = start;
  if (start.starts_with("corda") || start == "lora_ga")
    fail(ErrorCode::unsupported,
         "{}: key 'init_lora_weights': found '{}', whose adapters stand beside changed weights: save it in PEFT with "
         "path_initial_model_for_weight_conversion",
         source, start);
  const auto saved = read_names(json, "modules_to_save", source);
  config.modules_to_save = std::holds_alternative<std::string>(saved)
                               ? std::vector<std::string>{std::get<std::string>(saved)}
                               : std::get<std::vector<std::string>>(saved);
  config.validate();
  return config;
}

Json lora_config_json(const LoraConfig& config, const models::ModelSpec& spec, const std::string& base_model) {
  bool has_conv1d = false;
  for (const std::string& module : targeted_modules(spec, config))
    has_conv1d = has_conv1d || find_module(spec, module)->is_transposed;
  Json json = Json::object();
  json["alpha_pattern"] = Json::object();
  for (const auto& [pattern, alpha] : config.alpha_pattern) json["alpha_pattern"][pattern] = number(alpha);
  json["auto_mapping"] = nullptr;
  json["base_model_name_or_path"] = base_model;
  json["bias"] = config.bias;
  json["exclude_modules"] = names_json(config.exclude_modules);
  json["fan_in_fan_out"] = has_conv1d;
  json["inference_mode"] = true;
  json["init_lora_weights"] =
      config.init_lora_weights == "gaussian" ? Json("gaussian") : Json(config.init_lora_weights != "random");
  json["layers_pattern"] = nullptr;
  json["layers_to_transform"] = config.layers_to_transform.empty() ? Json() : Json(config.layers_to_transform);
  json["lora_alpha"] = number(config.lora_alpha);
  json["lora_bias"] = false;
  json["lora_dropout"] = config.lora_dropout;
  json["modules_to_save"] = config.modules_to_save.empty() ? Json() : Json(config.modules_to_save);
  json["peft_type"] = "LORA";
  json["r"] = config.r;
  json["rank_pattern"] = config.rank_pattern;
  json["revision"] = nullptr;
  json["target_modules"] = names_json(config.target_modules);
  json["task_type"] = spec.encoder ? "SEQ_2_SEQ_LM" : "CAUSAL_LM";
  json["use_dora"] = config.use_dora;
  json["use_rslora"] = config.use_rslora;
  if (std::holds_alternative<std::string>(config.target_modules) && !config.layers_to_transform.empty()) {
    json["target_modules"] = targeted_modules(spec, config);  // PEFT takes layers beside a list alone
    json["layers_to_transform"] = nullptr;
  }
  if (json["target_modules"].is_null()) {  // PEFT's defaults go by model type: say what was chosen
    std::set<std::string> last;
    for (const std::string& module : targeted_modules(spec, config)) last.insert(module.substr(module.rfind('.') + 1));
    json["target_modules"] = last;
  }
  return json;
}

Adapter read_adapter(const models::ModelSpec& spec, const std::filesystem::path& directory) {
  const std::filesystem::path config_path = directory / "adapter_config.json";
  Adapter adapter{parse_lora_config(read_json(config_path), config_path.string()), {}};
  const auto checkpoint = Checkpoint::open(directory / "adapter_model.safetensors");
  const Stored stored = list_stored(*checkpoint);
  std::vector<AdapterLayer> found;
  for (const std::string& module : stored.modules) {
    const models::ModuleSpec* linear = find_module(spec, module);
    if (!linear || linear->kind != models::ModuleKind::linear)
      fail(ErrorCode::invalid_argument,
           "{}: the adapter has an update for '{}', which is no linear layer of this model", directory.string(),
           module);
    const Shape shape = weight_shape(*linear);
    const auto [rank, scale] = rank_and_scale(adapter.config, module);
    found.push_back({module,
                     {autograd::parameter(read_side(*checkpoint, name_of_tensor(module, 'A'), {rank, shape[1]})),
                      autograd::parameter(read_side(*checkpoint, name_of_tensor(module, 'B'), {shape[0], rank})), scale,
                      static_cast<float>(adapter.config.lora_dropout), nullptr}});
    if (adapter.config.use_dora)
      found.back().lora.magnitude = autograd::parameter(
          read_side(*checkpoint, std::string(kPrefix) + module + std::string(kMagnitude), {shape[0]}));
  }
  if (found.empty()) fail(ErrorCode::corrupt_file, "{}: no update in adapter_model.safetensors", directory.string());
  models::for_each_module(spec, [&](const std::string& path, const models::ModuleSpec&) {
    for (AdapterLayer& layer : found)
      if (layer.module == path) adapter.layers.push_back(layer);
  });
  read_parameters(adapter, spec, *checkpoint, stored);
  return adapter;
}

void write_adapter(const Adapter& adapter, const models::ModelSpec& spec, const std::string& base_model,
                   const std::filesystem::path& directory) {
  const auto tensors = file_tensors(adapter, spec);
  std::vector<PlannedTensor> planned;
  planned.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) planned.push_back({name, DType::f32, tensor.shape()});
  SafetensorsWriter writer(directory, planned, INT64_MAX, "adapter_model");
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor.bytes());
  writer.finish();
  // Names of folders may be no UTF-8: that shall not cost a trained adapter.
  const Json config = lora_config_json(adapter.config, spec, base_model);
  write_file(directory / "adapter_config.json", config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace nibble::adapters
