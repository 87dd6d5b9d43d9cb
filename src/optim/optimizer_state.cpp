// Making states, and percentile clipping.
#include "optim/optimizer_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"

namespace nibble::optim {

int64_t count_of(const TrainableParameter& parameter) {
  return checked_count(parameter.shape, "parameter '" + parameter.name + "'");
}

bool is_8bit(const Hyper& hyper, int64_t count) { return hyper.optim_bits == 8 && count >= hyper.min_8bit_size; }

std::vector<ExpectedTensor> tensors_of(const Family& family, const Hyper& hyper, const TrainableParameter& parameter,
                                       bool is_8bit) {
  const DType dtype = is_8bit ? DType::u8 : DType::f32;
  const int64_t blocks = quant::block_count(count_of(parameter), kernels::kStateBlock);
  const auto planes = [&](Shape shape) {
    if (family.has_slow) shape.insert(shape.begin(), 2);
    return shape;
  };
  std::vector<ExpectedTensor> list{{"state1", dtype, planes(parameter.shape), &ParameterState::state1}};
  if (family.has_variance) list.push_back({"state2", dtype, parameter.shape, &ParameterState::state2});
  if (is_8bit) {
    list.push_back({"absmax1", DType::f32, planes({blocks}), &ParameterState::absmax1});
    if (family.has_variance) list.push_back({"absmax2", DType::f32, {blocks}, &ParameterState::absmax2});
  }
  if (hyper.max_unorm > 0) list.push_back({"unorm_vec", DType::f32, {1}, &ParameterState::unorm_vec});
  if (hyper.percentile_clipping < 100) list.push_back({"gnorm_vec", DType::f32, {100}, &ParameterState::gnorm_vec});
  return list;
}

namespace {

/// What the kernels of a step read and write, unlike what is kept of norms.
bool is_kernels(Tensor ParameterState::*member) {
  return member != &ParameterState::unorm_vec && member != &ParameterState::gnorm_vec;
}
bool is_paged(Tensor ParameterState::*member) {
  return member == &ParameterState::state1 || member == &ParameterState::state2;
}

Tensor zeros(const ops::Backend& backend, const ExpectedTensor& tensor) {
  const bool is_on_gpu = backend.cuda() && is_kernels(tensor.member);
  Tensor made = is_on_gpu ? backend.empty(tensor.dtype, tensor.shape) : Tensor(tensor.dtype, tensor.shape);
  if (made.count() == 0) return made;
  if (is_on_gpu)
    backend.cuda()->fill_zero(made.data(), made.size_bytes());
  else
    std::memset(made.data(), 0, static_cast<size_t>(made.size_bytes()));
  return made;
}

int64_t padded_bytes(const ExpectedTensor& tensor) {
  const int64_t count = checked_count(tensor.shape, tensor.name);
  return checked_mul(ceil_div(count, kPageAlignment) * kPageAlignment, size_of(tensor.dtype), tensor.name);
}

/// Puts the states of many parameters into one block of the pager's: all of one name, then all of the next.
void make_paged(Pager& pager, std::vector<std::pair<ParameterState*, ExpectedTensor>>& list) {
  std::stable_sort(list.begin(), list.end(),
                   [](const auto& a, const auto& b) { return a.second.name < b.second.name; });
  int64_t size = 0;
  for (const auto& [state, tensor] : list) size = checked_add(size, padded_bytes(tensor), "optimizer states");
  if (size == 0) return;
  const std::shared_ptr<void> block = pager.allocate(size);
  int64_t begin = 0;
  for (auto& [state, tensor] : list) {
    const std::shared_ptr<void> part(block, static_cast<std::byte*>(block.get()) + begin);
    state->*tensor.member = Tensor::in_device_memory(device::kCpu, tensor.dtype, tensor.shape, part);
    begin += padded_bytes(tensor);
  }
}

}  // namespace

std::map<size_t, ParameterState> make_states(Optimizer::State& s, const std::vector<size_t>& slots) {
  const bool pages = s.choice.is_paged && s.backend->cuda();
  if (pages && !s.pager) s.pager = std::make_unique<Pager>(*s.backend);
  std::map<size_t, ParameterState> states;
  std::vector<std::pair<ParameterState*, ExpectedTensor>> paged;
  for (const size_t i : slots) {
    const TrainableParameter& parameter = s.parameter(s.slots[i]);
    const Hyper hyper = s.hyper_of(s.slots[i]);
    ParameterState& state = states[i];
    for (const ExpectedTensor& tensor :
         tensors_of(*s.choice.family, hyper, parameter, is_8bit(hyper, count_of(parameter)))) {
      if (pages && is_paged(tensor.member))
        paged.emplace_back(&state, tensor);
      else
        state.*tensor.member = zeros(*s.backend, tensor);
    }
  }
  if (pages) make_paged(*s.pager, paged);
  return states;
}

double clip_by_percentile(Tensor& gnorm_vec, double squared_norm, int64_t step, int percentile) {
  float* history = gnorm_vec.as<float>();
  const auto norm = static_cast<float>(squared_norm);
  if (step == 1)
    std::fill_n(history, 100, norm);
  else
    history[step % 100] = norm;
  std::vector<float> sorted(history, history + 100);
  std::sort(sorted.begin(), sorted.end());
  const double bound = std::sqrt(double{sorted[static_cast<size_t>(percentile)]}), current = std::sqrt(double{norm});
  return current > bound ? bound / current : 1;
}

}  // namespace nibble::optim
