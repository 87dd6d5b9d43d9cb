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

/// Zeros on the GPU if it has room for them and for what a step needs beside them, else null.
std::shared_ptr<void> allocate_resident(Optimizer::State& s, int64_t size_bytes) {
  constexpr int64_t kStepBytes = int64_t{8} << 20;
  if (s.is_short) return nullptr;
  device::CudaStream& gpu = *s.backend->cuda();
  try {
    std::shared_ptr<void> block = gpu.allocate(size_bytes);
    gpu.allocate(kStepBytes);
    gpu.fill_zero(block.get(), size_bytes);
    return block;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::out_of_memory) throw;
  }
  s.is_short = true;
  gpu.release_unused();
  return nullptr;
}

using Listed = std::vector<std::pair<ParameterState*, ExpectedTensor>>;

/// Puts the states of many parameters into one block: all of one name, then all of the next.
void make_paged(Optimizer::State& s, Listed& list) {
  std::stable_sort(list.begin(), list.end(),
                   [](const auto& a, const auto& b) { return a.second.name < b.second.name; });
  int64_t size = 0;
  for (const auto& [state, tensor] : list) size = checked_add(size, padded_bytes(tensor), "optimizer states");
  if (size == 0) return;
  std::shared_ptr<void> block = allocate_resident(s, size);
  if (block) {
    s.residents.push_back({block, size});
    if (!s.offer) s.offer = device::offer_memory(s.backend->device().cuda, [&s] { return s.release_residents(); });
  }
  const device::Device where = block ? s.backend->device() : device::kCpu;
  if (!block) block = s.pager->allocate(size);
  int64_t begin = 0;
  for (auto& [state, tensor] : list) {
    const std::shared_ptr<void> part(block, static_cast<std::byte*>(block.get()) + begin);
    state->*tensor.member = Tensor::in_device_memory(where, tensor.dtype, tensor.shape, part);
    begin += padded_bytes(tensor);
  }
}

/// Points a state that lies in `from` to its copy.
void move_state(Tensor& state, const Optimizer::State::Resident& from, const std::shared_ptr<void>& to) {
  if (!state) return;
  const auto offset = state.as<std::byte>() - static_cast<std::byte*>(from.block.get());
  if (!state.device().is_cuda() || offset < 0 || offset >= from.size_bytes) return;
  const std::shared_ptr<void> part(to, static_cast<std::byte*>(to.get()) + offset);
  state = Tensor::in_device_memory(device::kCpu, state.dtype(), state.shape(), part);
}

}  // namespace

std::map<size_t, ParameterState> make_states(Optimizer::State& s, const std::vector<size_t>& slots) {
  const bool pages = s.choice.is_paged && s.backend->cuda();
  if (pages && !s.pager) s.pager = std::make_unique<Pager>(*s.backend);
  std::map<size_t, ParameterState> states;
  Listed paged;
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
  if (pages) make_paged(s, paged);
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

namespace nibble {

bool Optimizer::State::release_residents() {
  const std::unique_lock lock(in_use, std::try_to_lock);
  if (!lock || is_launching || residents.empty()) return false;
  device::CudaStream& gpu = *backend->cuda();
  std::vector<std::shared_ptr<void>> copies;
  try {
    for (const Resident& resident : residents) {
      copies.push_back(pager->allocate(resident.size_bytes));
      gpu.copy(copies.back().get(), resident.block.get(), resident.size_bytes);
    }
    gpu.synchronize();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::out_of_memory) throw;
    gpu.synchronize();
    return false;
  }
  for (optim::Slot& slot : slots)
    for (size_t i = 0; i < residents.size(); ++i)
      for (Tensor* state : {&slot.state.state1, &slot.state.state2}) optim::move_state(*state, residents[i], copies[i]);
  residents.clear();
  is_short = true;
  gpu.release_unused();
  return true;
}

}  // namespace nibble
