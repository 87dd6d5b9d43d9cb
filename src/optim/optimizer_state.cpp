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

ParameterState make_state(const Family& family, const Hyper& hyper, const TrainableParameter& parameter) {
  ParameterState state;
  for (const ExpectedTensor& tensor : tensors_of(family, hyper, parameter, is_8bit(hyper, count_of(parameter)))) {
    state.*tensor.member = Tensor(tensor.dtype, tensor.shape);
    Tensor& made = state.*tensor.member;
    if (made.count() > 0) std::memset(made.data(), 0, static_cast<size_t>(made.size_bytes()));
  }
  return state;
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
