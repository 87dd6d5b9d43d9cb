// State dictionaries, and their files.
#include "optim/state_dict.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/json.h"
#include "base/output.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_writer.h"
#include "optim/optimizer_state.h"

namespace nibble::optim {
namespace {

constexpr std::string_view kQuantState = "__bnb_optimizer_quant_state__";

std::string state_name(size_t parameter, std::string_view name) { return fmt::format("state.{}.{}", parameter, name); }
std::string tensor_name(size_t parameter, std::string_view name) {
  return fmt::format("state.{}.{}.{}", parameter, kQuantState, name);
}

Tensor text_tensor(const std::string& text) {
  Tensor tensor(DType::u8, {static_cast<int64_t>(text.size())});
  std::memcpy(tensor.data(), text.data(), text.size());
  return tensor;
}

/// AdEMAMix has three betas, every other optimizer of bitsandbytes two.
Json betas_json(const Family& family, const Hyper& hyper) {
  Json betas = Json::array();
  for (size_t i = 0; i < (family.betas == 3 ? 3 : 2); ++i) betas.push_back(hyper.betas[i]);
  return betas;
}

Json step_count(int64_t steps) { return steps > 0 ? Json(steps) : Json(nullptr); }

/// param_groups as bitsandbytes' state_dict() has them, with the options that it keeps outside and the names.
Json header_json(const Optimizer::State& s) {
  Json groups = Json::array();
  size_t number = 0;
  for (size_t g = 0; g < s.groups.size(); ++g) {
    const Hyper& hyper = s.group_hypers[g];
    Json params = Json::array(), names = Json::array();
    for (const TrainableParameter& parameter : s.groups[g].params) {
      params.push_back(number++);
      names.push_back(parameter.name);
    }
    groups.push_back({{"lr", hyper.lr},
                      {"betas", betas_json(*s.choice.family, hyper)},
                      {"eps", hyper.eps},
                      {"weight_decay", hyper.weight_decay},
                      {"alpha", hyper.alpha},
                      {"t_alpha", step_count(hyper.t_alpha)},
                      {"t_beta3", step_count(hyper.t_beta3)},
                      {"max_unorm", hyper.max_unorm},
                      {"optim_bits", hyper.optim_bits},
                      {"min_8bit_size", hyper.min_8bit_size},
                      {"percentile_clipping", hyper.percentile_clipping},
                      {"params", params},
                      {"param_names", names}});
  }
  return {{"optimizer", s.choice.family->name}, {"param_groups", groups}};
}

Hyper read_hyper(const Family& family, const Json& group, std::string_view source) {
  Hyper hyper;
  hyper.lr = get_value<double>(group, "lr", source);
  const auto betas = get_value<std::vector<double>>(group, "betas", source);
  const size_t expected = family.betas == 3 ? 3 : 2;
  if (betas.size() != expected)
    fail(ErrorCode::corrupt_file, "{}: betas: found {} values, expected {}", source, betas.size(), expected);
  std::copy(betas.begin(), betas.end(), hyper.betas.begin());
  hyper.eps = get_value<double>(group, "eps", source);
  hyper.weight_decay = get_value<double>(group, "weight_decay", source);
  hyper.alpha = get_value<double>(group, "alpha", source);
  hyper.t_alpha = find_value<int64_t>(group, "t_alpha", source).value_or(0);
  hyper.t_beta3 = find_value<int64_t>(group, "t_beta3", source).value_or(0);
  hyper.max_unorm = get_value<double>(group, "max_unorm", source);
  hyper.optim_bits = get_value<int>(group, "optim_bits", source);
  hyper.min_8bit_size = get_value<int64_t>(group, "min_8bit_size", source);
  hyper.percentile_clipping = get_value<int>(group, "percentile_clipping", source);
  check(family, hyper, source);
  return hyper;
}

/// Reads one dictionary into the parts of a State, which the caller then puts in place.
class Reader {
 public:
  Reader(const Optimizer::State& state, const FindTensor& find, std::string_view source)
      : state_(state), find_(find), source_(source) {}

  std::vector<Hyper> group_hypers() {
    const Tensor text = get("param_groups");
    const Json json =
        parse_json({text.as<char>(), static_cast<size_t>(text.size_bytes())}, std::string(source_) + ": param_groups");
    const auto name = get_value<std::string>(json, "optimizer", source_);
    require(name == state_.choice.family->name, "{} belongs to {}, this optimizer is {}", source_, name,
            state_.choice.family->name);
    const Json groups = get_value<Json>(json, "param_groups", source_);
    require(groups.is_array() && groups.size() == state_.groups.size(), "{}: found {} parameter groups, expected {}",
            source_, groups.size(), state_.groups.size());
    std::vector<Hyper> hypers;
    for (size_t g = 0; g < groups.size(); ++g) {
      check_names(get_value<std::vector<std::string>>(groups[g], "param_names", source_), g);
      hypers.push_back(read_hyper(*state_.choice.family, groups[g], source_));
    }
    return hypers;
  }

  ParameterState parameter_state(size_t number, const Hyper& hyper) {
    ParameterState state;
    const Tensor step = find_(state_name(number, "step"));
    if (!step) return state;
    check_tensor(step, state_name(number, "step"), DType::i64, {});
    std::memcpy(&state.step, step.data(), sizeof state.step);
    if (state.step < 1) fail(ErrorCode::corrupt_file, "{}: step {} of parameter {}", source_, state.step, number);
    const TrainableParameter& parameter = state_.parameter(state_.slots[number]);
    const bool is_8bit = optim::is_8bit(hyper, count_of(parameter));
    for (const ExpectedTensor& expected : tensors_of(*state_.choice.family, hyper, parameter, is_8bit)) {
      const std::string name = tensor_name(number, expected.name);
      state.*expected.member = copy(name, expected.dtype, expected.shape);
    }
    if (is_8bit) read_map(number, "qmap1", qmap1);
    if (is_8bit && state_.choice.family->has_variance) read_map(number, "qmap2", qmap2);
    return state;
  }

  Tensor qmap1, qmap2;

 private:
  Tensor get(const std::string& name) {
    Tensor tensor = find_(name);
    if (!tensor) fail(ErrorCode::corrupt_file, "{}: tensor '{}' is missing", source_, name);
    return tensor;
  }
  void check_tensor(const Tensor& tensor, const std::string& name, DType dtype, const Shape& shape) const {
    if (tensor.dtype() != dtype || tensor.shape() != shape)
      fail(ErrorCode::corrupt_file, "{}: tensor '{}': found {} {}, expected {} {}", source_, name,
           name_of(tensor.dtype()), to_string(tensor.shape()), name_of(dtype), to_string(shape));
  }
  Tensor copy(const std::string& name, DType dtype, const Shape& shape) {
    const Tensor tensor = get(name);
    check_tensor(tensor, name, dtype, shape);
    Tensor own(dtype, shape);
    if (own.count() > 0) std::memcpy(own.data(), tensor.data(), static_cast<size_t>(own.size_bytes()));
    return own;
  }
  /// One map serves all parameters, as in bitsandbytes.
  void read_map(size_t number, std::string_view name, Tensor& map) {
    const Tensor found = copy(tensor_name(number, name), DType::f32, {256});
    for (int i = 0; i < 256; ++i) {
      const float value = found.as<float>()[i];
      if (!std::isfinite(value) || (i > 0 && !(value > found.as<float>()[i - 1])))
        fail(ErrorCode::corrupt_file, "{}: {} of parameter {}: value {} is not ascending", source_, name, number, i);
    }
    if (map && std::memcmp(map.data(), found.data(), 1024) != 0)
      fail(ErrorCode::corrupt_file, "{}: {} of parameter {} differs from that of those before it", source_, name,
           number);
    map = found;
  }
  void check_names(const std::vector<std::string>& names, size_t g) const {
    const std::vector<TrainableParameter>& expected = state_.groups[g].params;
    require(names.size() == expected.size(), "{}: group {}: found {} parameters, expected {}", source_, g, names.size(),
            expected.size());
    for (size_t i = 0; i < names.size(); ++i)
      require(names[i] == expected[i].name, "{}: group {}: parameter {} is '{}', expected '{}'", source_, g, i,
              names[i], expected[i].name);
  }

  const Optimizer::State& state_;
  const FindTensor& find_;
  std::string_view source_;
};

}  // namespace

std::vector<NamedTensor> state_dict(const Optimizer& optimizer) {
  Optimizer::State& s = optimizer.state();
  const std::lock_guard lock(s.in_use);
  if (s.pager) s.pager->finish();
  std::vector<NamedTensor> tensors{{"param_groups", text_tensor(dump_json(header_json(s)))}};
  for (size_t i = 0; i < s.slots.size(); ++i) {
    const ParameterState& state = s.slots[i].state;
    if (state.step == 0) continue;
    Tensor step(DType::i64, {});
    std::memcpy(step.data(), &state.step, sizeof state.step);
    tensors.push_back({state_name(i, "step"), step});
    const Hyper hyper = s.hyper_of(s.slots[i]);
    const bool is_8bit = state.state1.dtype() == DType::u8;
    for (const ExpectedTensor& tensor : tensors_of(*s.choice.family, hyper, s.parameter(s.slots[i]), is_8bit))
      tensors.push_back({tensor_name(i, tensor.name), s.backend->to_host(state.*tensor.member)});
    if (is_8bit) tensors.push_back({tensor_name(i, "qmap1"), s.qmap1});
    if (is_8bit && s.choice.family->has_variance) tensors.push_back({tensor_name(i, "qmap2"), s.qmap2});
  }
  return tensors;
}

namespace {

/// Read states into the memory that the optimizer keeps its states in.
void put_states(Optimizer::State& s, const std::vector<ParameterState>& read) {
  std::vector<size_t> started;
  for (size_t i = 0; i < read.size(); ++i)
    if (read[i].step > 0) started.push_back(i);
  std::map<size_t, ParameterState> made = make_states(s, started);
  if (s.pager) s.pager->finish();
  for (size_t i = 0; i < read.size(); ++i) {
    ParameterState state = read[i].step > 0 ? std::move(made[i]) : ParameterState();
    state.step = read[i].step;
    for (Tensor ParameterState::*member :
         {&ParameterState::state1, &ParameterState::state2, &ParameterState::absmax1, &ParameterState::absmax2,
          &ParameterState::unorm_vec, &ParameterState::gnorm_vec}) {
      const Tensor& from = read[i].*member;
      Tensor& to = state.*member;
      if (!from || from.count() == 0) continue;
      if (to.device().is_cuda())
        s.backend->upload(to.data(), from.data(), from.size_bytes());
      else
        std::memcpy(to.data(), from.data(), static_cast<size_t>(from.size_bytes()));
    }
    s.slots[i].state = std::move(state);
  }
}

}  // namespace

void load_state_dict(Optimizer& optimizer, const FindTensor& find, std::string_view source) {
  Optimizer::State& s = optimizer.state();
  const std::lock_guard lock(s.in_use);
  Reader reader(s, find, source);
  const std::vector<Hyper> before = s.group_hypers;
  s.group_hypers = reader.group_hypers();  // that overrides go on top of
  std::vector<ParameterState> states;
  try {
    for (size_t i = 0; i < s.slots.size(); ++i) states.push_back(reader.parameter_state(i, s.hyper_of(s.slots[i])));
  } catch (...) {
    s.group_hypers = before;
    throw;
  }
  put_states(s, states);
  if (reader.qmap1) s.qmap1 = reader.qmap1;
  if (reader.qmap2) s.qmap2 = reader.qmap2;
}

}  // namespace nibble::optim

namespace nibble {
namespace {

void check_path(const std::filesystem::path& path) {
  require(path.extension() == ".safetensors", "optimizer state '{}': expected a name that ends in .safetensors",
          path.string());
}

}  // namespace

void Optimizer::save(const std::filesystem::path& path) const {
  check_path(path);
  const std::vector<optim::NamedTensor> tensors = optim::state_dict(*this);
  std::vector<PlannedTensor> plan;
  plan.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) plan.push_back({name, tensor.dtype(), tensor.shape()});
  const std::string stem = "." + path.stem().string() + ".partial";
  const std::filesystem::path directory = path.has_parent_path() ? path.parent_path() : ".";
  SafetensorsWriter writer(directory, plan, INT64_MAX, stem);
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor.bytes());
  writer.finish();
  const std::filesystem::path partial = directory / (stem + ".safetensors");
  sync_path(partial);  // else a loss of power may leave the new name to an empty file
  std::error_code error;
  std::filesystem::rename(partial, path, error);
  if (error) fail(ErrorCode::io, "optimizer state '{}': {}", path.string(), error.message());
}

void Optimizer::load(const std::filesystem::path& path) {
  check_path(path);
  const auto file = Checkpoint::open(path);
  optim::load_state_dict(
      *this, [&](std::string_view name) { return file->find(name) ? file->get(name) : Tensor(); }, path.string());
}

}  // namespace nibble
