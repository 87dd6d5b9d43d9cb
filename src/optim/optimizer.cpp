// Optimizer: options of groups and parameters, and a step as at most two kernel calls for all of them.
#include "nibble/optim.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "base/error.h"
#include "optim/optimizer_state.h"

namespace nibble {

using optim::Hyper;
using optim::Slot;

namespace {

void check_float(const TrainableParameter& parameter, DType dtype, std::string_view what) {
  require(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
          "parameter '{}': {} is {}, expected float32, bfloat16 or float16", parameter.name, what, name_of(dtype));
}

int64_t chunks_of(int64_t count) { return ceil_div(count, kernels::kOptimizerChunk); }

std::string label(const optim::Choice& choice, size_t group) {
  return fmt::format("{}, group {}", choice.family->name, group);
}

Tensor map_tensor(const std::array<float, 256>& map) {
  Tensor tensor(DType::f32, {256});
  std::copy(map.begin(), map.end(), tensor.as<float>());
  return tensor;
}

/// The jobs of one step, by the bits of their states.
struct Jobs {
  std::vector<kernels::OptimizerJob32Bit> of_32bit;
  std::vector<kernels::OptimizerJob8Bit> of_8bit;
  int64_t chunks_32bit = 0, chunks_8bit = 0;
};

void add_job(Jobs& jobs, kernels::OptimizerParameter of, const optim::Family& family, optim::ParameterState& state) {
  const bool is_8bit = state.state1.dtype() == DType::u8;
  int64_t& chunks = is_8bit ? jobs.chunks_8bit : jobs.chunks_32bit;
  of.chunks_before = chunks;
  chunks += chunks_of(of.count);
  if (!is_8bit) {
    float* first = state.state1.as<float>();
    jobs.of_32bit.push_back({of, first, family.has_variance ? state.state2.as<float>() : nullptr,
                             family.has_slow ? first + of.count : nullptr});
    return;
  }
  kernels::OptimizerJob8Bit job{of, state.state1.as<uint8_t>(), state.absmax1.as<float>()};
  if (family.has_variance) {
    job.codes2 = state.state2.as<uint8_t>();
    job.absmax2 = state.absmax2.as<float>();
  }
  if (family.has_slow) {
    job.codes3 = job.codes1 + of.count;
    job.absmax3 = job.absmax1 + quant::block_count(of.count, kernels::kStateBlock);
  }
  jobs.of_8bit.push_back(job);
}

/// sum of squares of each gradient; 0 where there is none.
std::vector<double> squared_norms(const Optimizer::State& state) {
  std::vector<kernels::SumSquaresJob> jobs;
  int64_t chunks = 0;
  for (const Slot& slot : state.slots) {
    const TrainableParameter& parameter = state.parameter(slot);
    if (parameter.grad) check_float(parameter, parameter.grad_dtype, "its gradient");
    const int64_t count = parameter.grad ? optim::count_of(parameter) : 0;
    jobs.push_back({parameter.grad, parameter.grad_dtype, count, chunks});
    chunks += chunks_of(count);
  }
  const auto count = static_cast<int64_t>(jobs.size());
  Tensor doubles = state.backend->empty(DType::u8, {(chunks + count) * int64_t{sizeof(double)}});
  auto* sums = doubles.as<double>();
  state.backend->kernels().sum_squares(state.backend->context(), {jobs.data(), count, sums + count, sums});
  std::vector<double> result(jobs.size());
  state.backend->download(result.data(), sums, count * int64_t{sizeof(double)});
  return result;
}

int64_t norms_of(int64_t count) { return 2 * chunks_of(count); }

/// Checks everything before anything moves, makes the states of new parameters and counts the step.
std::vector<Hyper> prepare(Optimizer::State& s) {
  std::vector<Hyper> hypers;
  int64_t norms = 0;
  for (const Slot& slot : s.slots) {
    const TrainableParameter& parameter = s.parameter(slot);
    hypers.push_back(s.hyper_of(slot));
    if (!parameter.grad) continue;
    check_float(parameter, parameter.grad_dtype, "its gradient");
    check_float(parameter, parameter.dtype, "it");
    const int64_t count = optim::count_of(parameter);
    require(parameter.data || count == 0, "parameter '{}': data is null", parameter.name);
    if (hypers.back().max_unorm > 0) norms += norms_of(count);
  }
  s.norms = norms > 0 ? s.backend->empty(DType::u8, {norms * int64_t{sizeof(double)}}) : Tensor();
  std::vector<size_t> fresh;
  for (size_t i = 0; i < s.slots.size(); ++i)
    if (s.parameter(s.slots[i]).grad && s.slots[i].state.step == 0) fresh.push_back(i);
  for (auto& [i, state] : optim::make_states(s, fresh)) s.slots[i].state = std::move(state);
  for (Slot& slot : s.slots) slot.state.step += s.parameter(slot).grad ? 1 : 0;
  return hypers;
}

/// What each gradient is multiplied by: `scale`, and percentile clipping.
std::vector<double> gradient_scales(Optimizer::State& s, const std::vector<Hyper>& hypers, double scale) {
  std::vector<double> scales(s.slots.size(), scale);
  const bool is_clipped =
      std::any_of(hypers.begin(), hypers.end(), [](const Hyper& hyper) { return hyper.percentile_clipping < 100; });
  if (!is_clipped) return scales;
  const std::vector<double> squares = squared_norms(s);
  for (size_t i = 0; i < s.slots.size(); ++i) {
    optim::ParameterState& state = s.slots[i].state;
    if (s.parameter(s.slots[i]).grad && hypers[i].percentile_clipping < 100)
      scales[i] *= optim::clip_by_percentile(state.gnorm_vec, squares[i] * scale * scale, state.step,
                                             hypers[i].percentile_clipping);
  }
  return scales;
}

/// At most one call for each width; `pager`: of states in main memory.
void launch(Optimizer::State& s, const Jobs& jobs, optim::Pager* pager) {
  const kernels::Kernels& k = s.backend->kernels();
  const kernels::Context& context = s.backend->context();
  const kernels::OptimizerRule rule = s.choice.family->rule;
  const kernels::OptimizerStep32BitArgs of_32bit{rule, jobs.of_32bit.data(),
                                                 static_cast<int64_t>(jobs.of_32bit.size())};
  const kernels::OptimizerStep8BitArgs of_8bit{rule, jobs.of_8bit.data(), static_cast<int64_t>(jobs.of_8bit.size()),
                                               s.qmap1.as<float>(), s.qmap2.as<float>()};
  if (of_32bit.count > 0) pager ? pager->step(rule, jobs.of_32bit) : k.optimizer_step_32bit(context, of_32bit);
  if (of_8bit.count > 0) pager ? pager->step(of_8bit) : k.optimizer_step_8bit(context, of_8bit);
  if (s.backend->cuda()) s.backend->cuda()->check();
}

/// While jobs hold pointers to states, these stay where they are.
class Launching {
 public:
  explicit Launching(Optimizer::State& s) : s_(s) { s_.is_launching = true; }
  ~Launching() { s_.is_launching = false; }
  Launching(const Launching&) = delete;
  Launching& operator=(const Launching&) = delete;

 private:
  Optimizer::State& s_;
};

/// Keeps the norms of the updates as state.
void keep_norms(Optimizer::State& s, const std::vector<Hyper>& hypers) {
  if (!s.norms) return;
  const Tensor on_host = s.backend->to_host(s.norms);
  const auto* norms = on_host.as<double>();
  for (size_t i = 0; i < s.slots.size(); ++i) {
    const TrainableParameter& parameter = s.parameter(s.slots[i]);
    const int64_t count = optim::count_of(parameter);
    if (!parameter.grad || !(hypers[i].max_unorm > 0) || count == 0) continue;
    s.slots[i].state.unorm_vec.as<float>()[0] = static_cast<float>(norms[1]);
    norms += norms_of(count);
  }
}

}  // namespace

Hyper Optimizer::State::hyper_of(const Slot& slot) const {
  const Hyper& group = group_hypers[slot.group];
  if (!slot.has_override) return group;
  const std::string where = "override of '" + parameter(slot).name + "'";
  const Hyper hyper = apply(choice, group, slot.override_options, where);
  check(*choice.family, hyper, where);
  return hyper;
}

Slot& Optimizer::State::find(std::string_view name) {
  const auto found = slot_of_name.find(name);
  if (found == slot_of_name.end()) fail(ErrorCode::not_found, "optimizer: no parameter '{}'", name);
  return slots[found->second];
}

Optimizer::Optimizer(std::string_view name, std::vector<ParameterGroup> groups, const OptimizerOptions& options,
                     int threads, std::string_view device)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.choice = optim::choose(name);
  s.base = s.choice.family->defaults;
  if (s.choice.bits) s.base.optim_bits = s.choice.bits;
  s.base = apply(s.choice, s.base, options, name);
  s.groups = std::move(groups);
  for (size_t g = 0; g < s.groups.size(); ++g) {
    s.group_hypers.push_back(apply(s.choice, s.base, s.groups[g].options, label(s.choice, g)));
    check(*s.choice.family, s.group_hypers.back(), label(s.choice, g));
    for (size_t i = 0; i < s.groups[g].params.size(); ++i) {
      const TrainableParameter& parameter = s.groups[g].params[i];
      check_float(parameter, parameter.dtype, "it");
      optim::count_of(parameter);
      require(s.slot_of_name.emplace(parameter.name, s.slots.size()).second, "optimizer: parameter '{}' is given twice",
              parameter.name);
      s.slots.push_back({g, i, {}, false, {}});
    }
  }
  require(!s.slots.empty(), "optimizer {}: no parameters", name);
  s.qmap1 = map_tensor(quant::kDynamicSigned);
  s.qmap2 = map_tensor(quant::kDynamicUnsigned);
  s.backend = std::make_shared<ops::Backend>(threads, device::parse_device(device));
}

Optimizer::Optimizer(Optimizer&&) noexcept = default;
Optimizer& Optimizer::operator=(Optimizer&&) noexcept = default;
Optimizer::~Optimizer() = default;

void Optimizer::override_config(std::string_view parameter, const OptimizerOptions& options) {
  Slot& slot = state_->find(parameter);
  require(slot.state.step == 0, "override of '{}': it has taken {} steps", parameter, slot.state.step);
  Slot changed = slot;
  changed.override_options = options;
  changed.has_override = true;
  state_->hyper_of(changed);
  slot = changed;
}

void Optimizer::step(double gradient_scale) {
  State& s = *state_;
  const std::lock_guard lock(s.in_use);
  const std::vector<Hyper> hypers = prepare(s);
  const std::vector<double> scales = gradient_scales(s, hypers, gradient_scale);
  const optim::Family& family = *s.choice.family;
  Jobs jobs, paged;
  const Launching launching(s);
  double* norms = s.norms.as<double>();
  for (size_t i = 0; i < s.slots.size(); ++i) {
    optim::ParameterState& state = s.slots[i].state;
    const TrainableParameter& parameter = s.parameter(s.slots[i]);
    if (!parameter.grad) continue;
    kernels::OptimizerParameter of{parameter.data,
                                   parameter.dtype,
                                   parameter.grad,
                                   parameter.grad_dtype,
                                   optim::count_of(parameter),
                                   family.scalars(hypers[i], state.step),
                                   0};
    of.scalars.gradient_scale = static_cast<float>(scales[i]);
    if (of.scalars.max_unorm > 0) {
      of.norms = norms;
      norms += norms_of(of.count);
    }
    add_job(s.pager && !state.state1.device().is_cuda() ? paged : jobs, of, family, state);
  }
  launch(s, jobs, nullptr);
  launch(s, paged, s.pager.get());
  keep_norms(s, hypers);
}

void Optimizer::synchronize() const {
  if (state_->backend->cuda()) state_->backend->cuda()->synchronize();
  if (state_->pager) state_->pager->finish();
}

double Optimizer::gradient_norm() const {
  const std::lock_guard lock(state_->in_use);
  double sum = 0;
  for (const double square : squared_norms(*state_)) sum += square;
  return std::sqrt(sum);
}

double Optimizer::clip_scale(double max_norm) const {
  require(max_norm > 0, "max_norm: found {}, expected more than 0", max_norm);
  const double scale = max_norm / (gradient_norm() + 1e-6);
  return scale > 1 ? 1 : scale;
}

std::vector<ParameterGroup>& Optimizer::groups() { return state_->groups; }

double Optimizer::lr(size_t group) const {
  require(group < state_->groups.size(), "lr: group {} of {}", group, state_->groups.size());
  return state_->group_hypers[group].lr;
}

void Optimizer::set_lr(double lr) {
  for (size_t g = 0; g < state_->groups.size(); ++g) set_lr(g, lr);
}

void Optimizer::set_lr(size_t group, double lr) {
  require(group < state_->groups.size(), "lr: group {} of {}", group, state_->groups.size());
  require(lr >= 0 && std::isfinite(lr), "lr: found {}, expected a finite number of 0 or more", lr);
  state_->group_hypers[group].lr = lr;
}

std::string_view Optimizer::family() const { return state_->choice.family->name; }

bool Optimizer::is_paged() const { return state_->choice.is_paged; }

int Optimizer::state_bits(std::string_view parameter) const {
  const Slot& slot = state_->find(parameter);
  return is_8bit(state_->hyper_of(slot), optim::count_of(state_->parameter(slot))) ? 8 : 32;
}

int64_t Optimizer::state_size_bytes() const {
  int64_t size = 0;
  for (const Slot& slot : state_->slots)
    for (const Tensor* tensor : {&slot.state.state1, &slot.state.state2, &slot.state.absmax1, &slot.state.absmax2,
                                 &slot.state.unorm_vec, &slot.state.gnorm_vec})
      if (*tensor) size += tensor->size_bytes();
  return size;
}

}  // namespace nibble
