// Reads the rotary parameters with the defaults that transformers fills in.
#include "models/rope_config.h"

#include <array>
#include <cmath>

namespace nibble::models {
namespace {

struct KindName {
  std::string_view name;
  nn::RopeKind kind;
};
constexpr std::array kKinds{KindName{"default", nn::RopeKind::plain},   KindName{"linear", nn::RopeKind::linear},
                            KindName{"dynamic", nn::RopeKind::dynamic}, KindName{"llama3", nn::RopeKind::llama3},
                            KindName{"yarn", nn::RopeKind::yarn},       KindName{"longrope", nn::RopeKind::longrope}};

nn::RopeKind kind_of(const ConfigReader& rope) {
  const std::string name = rope.find_text("rope_type").value_or(rope.text_or("type", "default"));
  for (const auto& entry : kKinds)
    if (entry.name == name) return entry.kind;
  fail(ErrorCode::unsupported,
       "{}: key 'rope_type': found '{}', expected default, linear, dynamic, llama3, yarn or longrope", rope.source(),
       name);
}

double required_factor(const ConfigReader& rope) {
  const auto factor = rope.find_number("factor", 1e-6, 1e6);
  if (!factor) rope.refuse("factor", "nothing", "a positive number");
  return *factor;
}

std::vector<double> factors(const ConfigReader& rope, std::string_view key, int64_t count) {
  const auto found = rope.json().find(key);
  if (found == rope.json().end() || !found->is_array()) rope.refuse(key, "no list", "a list of numbers");
  if (static_cast<int64_t>(found->size()) != count)
    rope.refuse(key, fmt::format("{} numbers", found->size()), fmt::format("{} numbers", count));
  std::vector<double> result;
  for (const Json& value : *found) {
    if (!value.is_number() || !(value.get<double>() > 0)) rope.refuse(key, value.dump(), "a positive number");
    result.push_back(value.get<double>());
  }
  return result;
}

void read_yarn(const ConfigReader& rope, nn::RopeSpec& spec) {
  spec.factor = required_factor(rope);
  spec.beta_fast = rope.number_or("beta_fast", 32, 0, 1e9);
  spec.beta_slow = rope.number_or("beta_slow", 1, 0, 1e9);
  if (spec.beta_fast == 0) spec.beta_fast = 32;  // as Python's `or`
  if (spec.beta_slow == 0) spec.beta_slow = 1;
  spec.truncate = rope.flag_or("truncate", true);
  const double mscale = rope.number_or("mscale", 0, 0, 1e6), all = rope.number_or("mscale_all_dim", 0, 0, 1e6);
  const auto scale = [&](double m) { return spec.factor <= 1 ? 1.0 : 0.1 * m * std::log(spec.factor) + 1.0; };
  const double implied = mscale != 0 && all != 0 ? scale(mscale) / scale(all) : scale(1);
  spec.attention_factor = rope.number_or("attention_factor", implied, 0, 1e6);
}

void read_longrope(const ConfigReader& rope, nn::RopeSpec& spec) {
  spec.short_factor = factors(rope, "short_factor", spec.rotary_dim / 2);
  spec.long_factor = factors(rope, "long_factor", spec.rotary_dim / 2);
  const auto original = static_cast<double>(spec.original_max_position_embeddings);
  spec.factor = rope.number_or("factor", static_cast<double>(spec.max_position_embeddings) / original, 1e-6, 1e6);
  const double implied = spec.factor <= 1 ? 1.0 : std::sqrt(1 + std::log(spec.factor) / std::log(original));
  spec.attention_factor = rope.number_or("attention_factor", implied, 0, 1e6);
}

}  // namespace

nn::RopeSpec read_rope(const ConfigReader& config, int64_t head_dim, int64_t max_positions,
                       const RopeDefaults& defaults) {
  const Json* object = defaults.scaling_key.empty() ? nullptr : config.find_object(defaults.scaling_key);
  if (!object) object = config.find_object("rope_parameters");
  if (object && !defaults.layer_type.empty() && object == config.find_object("rope_parameters")) {
    if (object->contains("rope_type"))
      config.refuse("rope_parameters", "one for all layers", "one for each layer type");
    object = ConfigReader(*object, config.source()).find_object(defaults.layer_type);
  }
  static const Json kNone = Json::object();
  const ConfigReader rope(object ? *object : kNone, config.source());

  nn::RopeSpec spec;
  spec.kind = kind_of(rope);
  spec.theta = rope.find_number("rope_theta", 1e-3, 1e18)
                   .value_or(config.number_or(defaults.theta_key, defaults.theta, 1e-3, 1e18));
  const auto share = rope.find_number("partial_rotary_factor", 0, 1)
                         .value_or(config.number_or(defaults.share_key, defaults.share, 0, 1));
  if (defaults.is_whole && share != 1) config.refuse(defaults.share_key, share, "1");
  spec.rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * share);
  if (spec.rotary_dim < 2 || spec.rotary_dim % 2 != 0)
    config.refuse("head_dim", fmt::format("{} rotating dimensions", spec.rotary_dim), "an even number, at least 2");
  spec.max_position_embeddings = max_positions;
  const auto own = rope.find_integer("original_max_position_embeddings", 1, kMaxPositions);
  const int64_t original =
      defaults.original_positions > 0 ? defaults.original_positions : own.value_or(spec.max_position_embeddings);
  spec.original_max_position_embeddings =
      config.integer_or("original_max_position_embeddings", original, 1, kMaxPositions);

  switch (spec.kind) {
    case nn::RopeKind::plain:
      break;
    case nn::RopeKind::linear:
      spec.factor = required_factor(rope);
      break;
    case nn::RopeKind::dynamic:
      spec.factor = required_factor(rope);
      if (spec.rotary_dim < 4) config.refuse("head_dim", head_dim, "at least 4 for dynamic scaling");
      break;
    case nn::RopeKind::llama3:
      spec.factor = required_factor(rope);
      spec.low_freq_factor = rope.number_or("low_freq_factor", 1, 1e-6, 1e6);
      spec.high_freq_factor = rope.number_or("high_freq_factor", 4, 1e-6, 1e6);
      if (spec.high_freq_factor <= spec.low_freq_factor)
        rope.refuse("high_freq_factor", spec.high_freq_factor, "more than low_freq_factor");
      break;
    case nn::RopeKind::yarn:
      read_yarn(rope, spec);
      break;
    case nn::RopeKind::longrope:
      read_longrope(rope, spec);
      break;
  }
  return spec;
}

}  // namespace nibble::models
