// What an optimizer holds: resolved options of each parameter, and its states as tensors.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "nibble/optim.h"
#include "ops/backend.h"
#include "optim/family.h"
#include "optim/paging.h"
#include "tensor/tensor.h"

namespace nibble::optim {

/// The states of one parameter, by bitsandbytes' names. Tensors that the family has no use for are empty.
struct ParameterState {
  int64_t step = 0;  // 0: nothing exists yet
  Tensor state1;     // u8 or f32, shaped as the parameter; AdEMAMix: (2, shape)
  Tensor state2;     // the same, without a second plane
  Tensor absmax1;    // f32 (ceil(count / 256)); AdEMAMix: (2, ceil(count / 256)); 8 bits only
  Tensor absmax2;    // f32 (ceil(count / 256))
  Tensor unorm_vec;  // f32 (1): sum of squares of the last update; with max_unorm only
  Tensor gnorm_vec;  // f32 (100): squared gradient norms; with percentile clipping only
};

/// One parameter's place in its group, and what belongs to it.
struct Slot {
  size_t group, index;
  OptimizerOptions override_options;
  bool has_override = false;
  ParameterState state;
};

int64_t count_of(const TrainableParameter& parameter);

/// The states that a parameter must have, by name, to compare a file with.
struct ExpectedTensor {
  std::string_view name;
  DType dtype;
  Shape shape;
  Tensor ParameterState::*member;
};
std::vector<ExpectedTensor> tensors_of(const Family& family, const Hyper& hyper, const TrainableParameter& parameter,
                                       bool is_8bit);

/// True if a parameter of that size keeps 8-bit states.
bool is_8bit(const Hyper& hyper, int64_t count);

/// The factor of percentile clipping for a squared norm, which goes into gnorm_vec; `step` counts from 1.
double clip_by_percentile(Tensor& gnorm_vec, double squared_norm, int64_t step, int percentile);

}  // namespace nibble::optim

namespace nibble {

struct Optimizer::State {
  optim::Choice choice;
  optim::Hyper base;  // defaults and the constructor's options
  std::vector<ParameterGroup> groups;
  std::vector<optim::Hyper> group_hypers;
  std::vector<optim::Slot> slots;  // through all groups
  std::map<std::string, size_t, std::less<>> slot_of_name;
  Tensor qmap1, qmap2;  // f32 (256); 8-bit states
  std::shared_ptr<ops::Backend> backend;
  Tensor norms;                         // bytes of one step: what OptimizerParameter::norms point into
  std::unique_ptr<optim::Pager> pager;  // a paged optimizer's on a GPU, from the first states on
  /// A paged optimizer's states that are on the GPU while it has room.
  struct Resident {
    std::shared_ptr<void> block;
    int64_t size_bytes;
  };
  std::vector<Resident> residents;
  bool is_short = false;        // of memory: states made from now on lie in main memory
  std::recursive_mutex in_use;  // by a call of its owner, or by an allocation that runs short
  bool is_launching = false;    // jobs hold pointers
  std::shared_ptr<void> offer;  // of the residents; goes first

  /// Moves the residents to main memory, for good. False if there are none, or a call needs them.
  bool release_residents();

  const TrainableParameter& parameter(const optim::Slot& slot) const { return groups[slot.group].params[slot.index]; }
  /// Group and override together. Errors: invalid_argument.
  optim::Hyper hyper_of(const optim::Slot& slot) const;
  /// Errors: not_found.
  optim::Slot& find(std::string_view name);
};

namespace optim {
/// States of zeros for the first step of parameters, by their slots' numbers, where the optimizer keeps them. Errors:
/// out_of_memory, device.
std::map<size_t, ParameterState> make_states(Optimizer::State& s, const std::vector<size_t>& slots);

/// Shares threads with what else the caller runs.
inline void use_backend(Optimizer& optimizer, std::shared_ptr<ops::Backend> backend) {
  optimizer.state().backend = std::move(backend);
}
}  // namespace optim

}  // namespace nibble
