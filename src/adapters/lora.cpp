// Target rules, and how an adapter starts.
#include "adapters/lora.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <regex>

#include "adapters/pissa.h"
#include "base/error.h"
#include "base/random.h"
#include "models/layer.h"
#include "models/module_tree.h"
#include "nn/dora.h"

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
  require(bias == "none" || bias == "all" || bias == "lora_only", "bias: found '{}', expected none, all or lora_only",
          bias);
  for (const std::string& module : modules_to_save) require(!module.empty(), "modules_to_save: found an empty name");
  if (adapters::is_pissa(init_lora_weights))
    adapters::pissa_rounds(init_lora_weights);
  else
    require(init_lora_weights == "default" || init_lora_weights == "gaussian" || init_lora_weights == "random" ||
                init_lora_weights == "loftq" || init_lora_weights == "olora",
            "init_lora_weights: found '{}', expected default, gaussian, random, loftq, olora, pissa or pissa_niter_N",
            init_lora_weights);
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

/// Matches whole names against a list or an expression; remembers which entries matched.
class Matcher {
 public:
  Matcher(const Names& names, std::string_view field) : field_(field) {
    if (const auto* pattern = std::get_if<std::string>(&names)) {
      pattern_ = compile(*pattern, field);
      names_ = {*pattern};
    } else {
      names_ = std::get<std::vector<std::string>>(names);
    }
    used_.resize(names_.size());
  }

  bool is_empty() const { return names_.empty(); }
  bool matches(const std::string& module) {
    bool found = false;
    for (size_t i = 0; i < names_.size(); ++i)
      if (pattern_ ? std::regex_match(module, *pattern_) : is_named(module, names_[i])) found = used_[i] = true;
    return found;
  }
  /// Errors: invalid_argument naming the first entry that matched no module.
  void require_all_used(std::string_view kind) const {
    for (size_t i = 0; i < names_.size(); ++i)
      require(used_[i], "{}: '{}' matches no {} of the model", field_, names_[i], kind);
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

bool fits_pattern(const std::string& module, const std::string& pattern, std::string_view field) {
  return std::regex_match(module, compile(fmt::format("(.*\\.)?({})", pattern), field));
}

template <typename Value>
Value by_pattern(const std::map<std::string, Value>& patterns, const std::string& module, Value fallback,
                 std::string_view field) {
  for (const auto& [pattern, value] : patterns)
    if (fits_pattern(module, pattern, field)) return value;
  return fallback;
}

/// A slip in a name would go unseen otherwise.
template <typename Value>
void require_patterns_fit(const std::map<std::string, Value>& patterns, const std::vector<std::string>& modules,
                          std::string_view field) {
  for (const auto& entry : patterns)
    require(std::any_of(modules.begin(), modules.end(),
                        [&](const std::string& module) { return fits_pattern(module, entry.first, field); }),
            "{}: '{}' matches no target module", field, entry.first);
}

/// Layers that are no targets count: a list that names the head serves every model.
void require_exclusions_fit(const Names& excluded, const models::ModelSpec& spec) {
  Matcher matcher(excluded, "exclude_modules");
  models::for_each_module(spec, [&](const std::string& path, const models::ModuleSpec& module) {
    if (module.children.empty()) matcher.matches(path);
  });
  matcher.require_all_used("layer");
}

void require_layers_exist(const std::vector<int64_t>& layers, const std::vector<std::string>& modules) {
  for (const int64_t layer : layers)
    require(std::any_of(modules.begin(), modules.end(),
                        [&](const std::string& module) { return layer_number(module) == layer; }),
            "layers_to_transform: layer {} has no target module", layer);
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

/// PEFT: a name that ends so, dots or not, or one inside such a module.
bool is_saved(const std::string& module, const std::vector<std::string>& names) {
  for (size_t end = module.find('.'); !module.empty(); end = module.find('.', end + 1)) {
    const std::string_view path = std::string_view(module).substr(0, end);
    for (const std::string& name : names)
      if (path.ends_with(name)) return true;
    if (end == std::string::npos) return false;
  }
  return false;
}

/// A copy in f32 in main memory of a parameter of the model.
Tensor own_copy(const models::Decoder& model, const std::string& name) {
  const auto* dense = std::get_if<nn::DenseWeight>(&model.weights().get(name));
  if (!dense)
    fail(ErrorCode::unsupported,
         "tensor '{}' is quantized: quantized weights are not trained themselves; train an adapter beside them, or "
         "load the model without load_in_4bit and load_in_8bit",
         name);
  return scaled(model.backend().to_host(dense->weight).to(DType::f32), 1);
}

nn::Linear linear_of(const models::Decoder& model, const AdapterLayer& layer) {
  nn::Linear linear = models::bind_linear(model.backend(), model.spec(), model.weights(), layer.module);
  if (layer.residual) linear.weight = *layer.residual;
  return linear;
}

/// An update where the kernels of `backend` reach it.
nn::Lora on_device(const ops::Backend& backend, const nn::Lora& lora) {
  nn::Lora result = lora;
  result.a = autograd::constant(backend.to_device(lora.a->value));
  result.b = autograd::constant(backend.to_device(lora.b->value));
  return result;
}

std::string with_commas(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

}  // namespace

const AdapterLayer* Adapter::find_layer(std::string_view module) const {
  for (const AdapterLayer& layer : layers)
    if (layer.module == module) return &layer;
  return nullptr;
}

const nn::Lora* Adapter::find(std::string_view module) const {
  const AdapterLayer* layer = find_layer(module);
  return layer ? &layer->lora : nullptr;
}

autograd::Var Adapter::find_parameter(std::string_view name) const {
  for (const TrainedParameter& parameter : parameters)
    if (parameter.name == name) return parameter.value;
  return nullptr;
}

int64_t Adapter::parameter_count() const {
  int64_t count = 0;
  for (const NamedVariable& named : variables()) count += named.variable->value.count();
  return count;
}

std::vector<NamedVariable> Adapter::variables() const {
  std::vector<NamedVariable> result;
  for (const AdapterLayer& layer : layers) {
    result.push_back({layer.module + ".lora_A.weight", layer.lora.a});
    result.push_back({layer.module + ".lora_B.weight", layer.lora.b});
    if (layer.lora.magnitude) result.push_back({layer.module + ".lora_magnitude_vector", layer.lora.magnitude});
  }
  for (const TrainedParameter& parameter : parameters) result.push_back({parameter.name, parameter.value});
  return result;
}

std::vector<autograd::Var*> Adapter::slots() {
  std::vector<autograd::Var*> result;
  for (AdapterLayer& layer : layers) {
    result.push_back(&layer.lora.a);
    result.push_back(&layer.lora.b);
    if (layer.lora.magnitude) result.push_back(&layer.lora.magnitude);
  }
  for (TrainedParameter& parameter : parameters) result.push_back(&parameter.value);
  return result;
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
    if (is_saved(path, config.modules_to_save)) return;
    const auto number = layer_number(path);
    const auto& layers = config.layers_to_transform;
    if (!layers.empty() && (!number || std::find(layers.begin(), layers.end(), *number) == layers.end())) return;
    modules.push_back(path);
  });
  if (!is_all) targets.require_all_used("linear layer");
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
  const std::vector<std::string> modules = targeted_modules(spec, config);
  require_patterns_fit(config.rank_pattern, modules, "rank_pattern");
  require_patterns_fit(config.alpha_pattern, modules, "alpha_pattern");
  require_layers_exist(config.layers_to_transform, modules);
  require_exclusions_fit(config.exclude_modules, spec);
  for (const std::string& module : modules) {
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
  for (autograd::Var* variable : result.slots()) *variable = autograd::parameter(backend.to_device((*variable)->value));
  return result;
}

std::vector<std::pair<std::string, bool>> trained_parameters(const models::ModelSpec& spec, const LoraConfig& config) {
  std::vector<std::pair<std::string, bool>> result;
  const std::vector<std::string> targets = targeted_modules(spec, config);
  std::vector<bool> used(config.modules_to_save.size());
  models::for_each_module(spec, [&](const std::string& path, const models::ModuleSpec& module) {
    for (size_t i = 0; i < used.size(); ++i) used[i] = used[i] || path.ends_with(config.modules_to_save[i]);
    const bool is_copy = is_saved(path, config.modules_to_save);
    const bool is_target = std::find(targets.begin(), targets.end(), path) != targets.end();
    for (const models::ParameterSpec& parameter : module.parameters)
      if (is_copy || (parameter.name == "bias" && (config.bias == "all" || (config.bias == "lora_only" && is_target))))
        result.emplace_back(models::join(path, parameter.name), is_copy);
  });
  for (size_t i = 0; i < used.size(); ++i)
    require(used[i], "modules_to_save: '{}' matches no module of the model", config.modules_to_save[i]);
  return result;
}

void add_from_model(Adapter& adapter, const models::Decoder& model) {
  for (const auto& [name, is_copy] : trained_parameters(model.spec(), adapter.config))
    adapter.parameters.push_back({name, autograd::parameter(own_copy(model, name)), is_copy});
  if (!adapter.config.use_dora) return;
  for (AdapterLayer& layer : adapter.layers) {
    const Tensor inverse = model.backend().to_host(
        nn::inverse_row_norms(model.backend(), linear_of(model, layer), on_device(model.backend(), layer.lora)));
    Tensor norms(DType::f32, inverse.shape());
    for (int64_t i = 0; i < norms.count(); ++i) norms.as<float>()[i] = 1 / inverse.as<float>()[i];
    layer.lora.magnitude = autograd::parameter(std::move(norms));
  }
}

Adapter whole_model(const models::Decoder& model) {
  Adapter adapter;
  adapter.is_whole = true;
  models::for_each_module(model.spec(), [&](const std::string& path, const models::ModuleSpec& module) {
    for (const models::ParameterSpec& parameter : module.parameters) {
      const std::string name = models::join(path, parameter.name);
      if (models::resolve_tied(model.spec(), name) == name)
        adapter.parameters.push_back({name, autograd::parameter(own_copy(model, name)), false});
    }
  });
  return adapter;
}

std::shared_ptr<const models::Updates> updates_of(const Adapter& adapter, const models::Decoder& model) {
  auto updates = std::make_shared<models::Updates>();
  const ops::Backend& backend = model.backend();
  for (const AdapterLayer& layer : adapter.layers) {
    const nn::Lora& lora = layer.lora;
    nn::LowRank update{scaled(lora.a->value, 1), scaled(lora.b->value, lora.scale), {}};
    if (lora.magnitude) {
      update.row_scale =
          backend.to_host(nn::inverse_row_norms(backend, linear_of(model, layer), on_device(backend, lora)));
      const int64_t rank = update.b.dim(1);
      for (int64_t r = 0; r < update.b.dim(0); ++r) {
        const float factor = update.row_scale.as<float>()[r] *= lora.magnitude->value.as<float>()[r];
        for (int64_t i = 0; i < rank; ++i) update.b.as<float>()[r * rank + i] *= factor;
      }
    }
    updates->layers[layer.module] = std::move(update);
    if (layer.residual) updates->weights[layer.module] = *layer.residual;
  }
  for (const TrainedParameter& parameter : adapter.parameters)
    updates->parameters[parameter.name] = scaled(parameter.value->value, 1);
  if (adapter.is_whole)
    for (const auto& [tied, original] : model.spec().tied) updates->parameters[tied] = updates->parameters[original];
  return updates;
}

std::string trainable_parameters_text(const Adapter& adapter, int64_t base) {
  const int64_t trained = adapter.parameter_count();
  int64_t all = base + trained;
  for (const TrainedParameter& parameter : adapter.parameters)
    if (!parameter.is_copy) all -= parameter.value->value.count();
  return fmt::format("trainable params: {} || all params: {} || trainable%: {:.4f}", with_commas(trained),
                     with_commas(all), 100.0 * static_cast<double>(trained) / static_cast<double>(all));
}

}  // namespace adapters
}  // namespace nibble
