// Target rules, and how an adapter starts.
#include "adapters/lora.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <regex>

#include "base/error.h"
#include "base/random.h"
#include "models/module_tree.h"

namespace nibble {

void LoraConfig::validate() const {
  require(r >= 1 && r <= 65536, "r: found {}, expected a whole number from 1 to 65536", r);
  require(std::isfinite(lora_alpha) && lora_alpha > 0, "lora_alpha: found {}, expected a positive number", lora_alpha);
  require(lora_dropout >= 0 && lora_dropout < 1, "lora_dropout: found {}, expected a number from 0 to below 1",
          lora_dropout);
  for (const auto& [pattern, rank] : rank_pattern)
    require(rank >= 1 && rank <= 65536, "rank_pattern: found {} for '{}', expected a whole number from 1 to 65536",
            rank, pattern);
  for (const auto& [pattern, alpha] : alpha_pattern)
    require(std::isfinite(alpha) && alpha > 0, "alpha_pattern: found {} for '{}', expected a positive number", alpha,
            pattern);
  require(init_lora_weights == "default" || init_lora_weights == "gaussian" || init_lora_weights == "random",
          "init_lora_weights: found '{}', expected default, gaussian or random", init_lora_weights);
}

namespace adapters {
namespace {

using Names = std::variant<std::vector<std::string>, std::string>;

std::regex compile(const std::string& pattern, std::string_view field) {
  require(pattern.size() <= 1000, "{}: found {} characters, expected at most 1000", field, pattern.size());
  try {
    return std::regex(pattern);
  } catch (const std::regex_error& error) {
    fail(ErrorCode::invalid_argument, "{}: '{}' is no regular expression: {}", field, pattern, error.what());
  }
}

bool is_named(const std::string& module, const std::string& name) {
  return module == name || module.ends_with("." + name);
}

/// Matches whole names against a list or an expression; remembers which entries of the list matched.
class Matcher {
 public:
  Matcher(const Names& names, std::string_view field) : field_(field) {
    if (const auto* pattern = std::get_if<std::string>(&names))
      pattern_ = compile(*pattern, field);
    else
      names_ = std::get<std::vector<std::string>>(names);
    used_.resize(names_.size());
  }

  bool is_empty() const { return !pattern_ && names_.empty(); }
  bool matches(const std::string& module) {
    if (pattern_) return std::regex_match(module, *pattern_);
    bool found = false;
    for (size_t i = 0; i < names_.size(); ++i)
      if (is_named(module, names_[i])) found = used_[i] = true;
    return found;
  }
  /// Errors: invalid_argument naming the first entry that matched no module.
  void require_all_used() const {
    for (size_t i = 0; i < names_.size(); ++i)
      require(used_[i], "{}: '{}' matches no linear layer of the model", field_, names_[i]);
  }

 private:
  std::string_view field_;
  std::optional<std::regex> pattern_;
  std::vector<std::string> names_;
  std::vector<bool> used_;
};

/// The first number among the parts of a module's name: its layer.
std::optional<int64_t> layer_number(const std::string& module) {
  static const std::regex kNumber(R"((?:^|.*?\.)(\d{1,9})(?:\..*|$))");
  std::smatch match;
  if (!std::regex_match(module, match, kNumber)) return std::nullopt;
  return std::stoll(match[1].str());
}

/// What PEFT targets if nothing is said: the query and value projections, or the fused one.
Names default_targets(const models::ModelSpec& spec) {
  const models::AttentionSpec& attention = spec.layers.front().attention;
  const auto last = [](const std::string& path) { return path.substr(path.rfind('.') + 1); };
  if (!attention.qkv.empty()) return std::vector<std::string>{last(attention.qkv)};
  return std::vector<std::string>{last(attention.q), last(attention.v)};
}

template <typename Value>
Value by_pattern(const std::map<std::string, Value>& patterns, const std::string& module, Value fallback,
                 std::string_view field) {
  for (const auto& [pattern, value] : patterns)
    if (std::regex_match(module, compile(fmt::format("(.*\\.)?({})", pattern), field))) return value;
  return fallback;
}

Tensor uniform(Random& random, Shape shape, double bound) {
  Tensor tensor(DType::f32, std::move(shape));
  for (int64_t i = 0; i < tensor.count(); ++i)
    tensor.as<float>()[i] = static_cast<float>((2 * random.uniform() - 1) * bound);
  return tensor;
}

Tensor zeros(Shape shape) {
  Tensor tensor(DType::f32, std::move(shape));
  std::fill_n(tensor.as<float>(), tensor.count(), 0.0f);
  return tensor;
}

/// A copy times `factor`.
Tensor scaled(const Tensor& x, float factor) {
  Tensor copy(DType::f32, x.shape());
  for (int64_t i = 0; i < x.count(); ++i) copy.as<float>()[i] = factor * x.as<float>()[i];
  return copy;
}

std::string with_commas(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

}  // namespace

const nn::Lora* Adapter::find(std::string_view module) const {
  for (const AdapterLayer& layer : layers)
    if (layer.module == module) return &layer.lora;
  return nullptr;
}

int64_t Adapter::parameter_count() const {
  int64_t count = 0;
  for (const AdapterLayer& layer : layers) count += layer.lora.a->value.count() + layer.lora.b->value.count();
  return count;
}

std::vector<std::string> targeted_modules(const models::ModelSpec& spec, const LoraConfig& config) {
  const auto* pattern = std::get_if<std::string>(&config.target_modules);
  const bool is_all = pattern && *pattern == "all-linear";
  Matcher targets(is_all ? Names{} : config.target_modules, "target_modules");
  if (!is_all && targets.is_empty()) targets = Matcher(default_targets(spec), "target_modules");
  Matcher excluded(config.exclude_modules, "exclude_modules");
  std::vector<std::string> modules;
  models::for_each_module(spec, [&](const std::string& path, const models::ModuleSpec& module) {
    if (module.kind != models::ModuleKind::linear) return;
    if (is_all ? path == spec.head : !targets.matches(path)) return;
    if (!excluded.is_empty() && excluded.matches(path)) return;
    const auto number = layer_number(path);
    const auto& layers = config.layers_to_transform;
    if (!layers.empty() && (!number || std::find(layers.begin(), layers.end(), *number) == layers.end())) return;
    modules.push_back(path);
  });
  if (!is_all) targets.require_all_used();
  require(!modules.empty(), "target_modules: no linear layer of the model is left");
  return modules;
}

RankAndScale rank_and_scale(const LoraConfig& config, const std::string& module) {
  const int64_t rank = by_pattern(config.rank_pattern, module, config.r, "rank_pattern");
  const double alpha = by_pattern(config.alpha_pattern, module, config.lora_alpha, "alpha_pattern");
  const auto r = static_cast<double>(rank);
  return {rank, static_cast<float>(config.use_rslora ? alpha / std::sqrt(r) : alpha / r)};
}

Adapter create_adapter(const models::ModelSpec& spec, const LoraConfig& config, uint64_t seed) {
  config.validate();
  Adapter adapter{config, {}};
  Random random(seed);
  for (const std::string& module : targeted_modules(spec, config)) {
    const Shape shape = weight_shape(*find_module(spec, module));
    const auto [rank, scale] = rank_and_scale(config, module);
    Tensor a(DType::f32, {rank, shape[1]});
    if (config.init_lora_weights == "gaussian")
      for (int64_t i = 0; i < a.count(); ++i)
        a.as<float>()[i] = static_cast<float>(random.normal() / static_cast<double>(rank));
    else  // Kaiming's bound with a = sqrt 5, as torch.nn.Linear
      a = uniform(random, {rank, shape[1]}, 1 / std::sqrt(static_cast<double>(shape[1])));
    Tensor b = config.init_lora_weights == "random"
                   ? uniform(random, {shape[0], rank}, 1 / std::sqrt(static_cast<double>(rank)))
                   : zeros({shape[0], rank});
    adapter.layers.push_back({module,
                              {autograd::parameter(std::move(a)), autograd::parameter(std::move(b)), scale,
                               static_cast<float>(config.lora_dropout)}});
  }
  return adapter;
}

Adapter to_device(const ops::Backend& backend, const Adapter& adapter) {
  Adapter result = adapter;
  if (!backend.cuda()) return result;
  for (AdapterLayer& layer : result.layers)
    for (autograd::Var* variable : {&layer.lora.a, &layer.lora.b})
      *variable = autograd::parameter(backend.to_device((*variable)->value));
  return result;
}

std::shared_ptr<const models::Updates> updates_of(const Adapter& adapter) {
  auto updates = std::make_shared<models::Updates>();
  for (const AdapterLayer& layer : adapter.layers)
    (*updates)[layer.module] = {scaled(layer.lora.a->value, 1), scaled(layer.lora.b->value, layer.lora.scale)};
  return updates;
}

std::string trainable_parameters_text(const Adapter& adapter, int64_t base) {
  const int64_t trained = adapter.parameter_count(), all = base + trained;
  return fmt::format("trainable params: {} || all params: {} || trainable%: {:.4f}", with_commas(trained),
                     with_commas(all), 100.0 * static_cast<double>(trained) / static_cast<double>(all));
}

}  // namespace adapters
}  // namespace nibble
