// The state dictionary: what a checkpoint of an optimizer holds, as named tensors (docs/formats/optimizer_state.md).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/optim.h"
#include "tensor/tensor.h"

namespace nibble::optim {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

/// Tensors share the optimizer's memory: they change with its next step.
std::vector<NamedTensor> state_dict(const Optimizer& optimizer);

/// The tensor of a name, or an empty one. Tensors are copied.
using FindTensor = std::function<Tensor(std::string_view name)>;

/// Nothing changes unless everything fits. `source` names the dictionary in errors: corrupt_file (missing, of another
/// type or shape), invalid_argument (another optimizer, other parameters).
void load_state_dict(Optimizer& optimizer, const FindTensor& find, std::string_view source);

}  // namespace nibble::optim
