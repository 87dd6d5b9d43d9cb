// What lives as long as one pass through a trainable model.
#pragma once

#include <vector>

#include "ops/experts.h"
#include "train/model.h"

namespace nibble::train {

inline Tensor uploaded(const ops::Backend& backend, const std::vector<int32_t>& values) {
  Tensor tensor = backend.empty(DType::i32, {static_cast<int64_t>(values.size())});
  backend.upload(tensor.data(), values.data(), tensor.size_bytes());
  return tensor;
}

/// Added to scores, by distance.
struct TrainableModel::Bias {
  int64_t span = 0;
  Tensor table;                      // (heads, 2 * span - 1)
  autograd::Var variable = nullptr;  // the same, if it is trained
};

/// One forward pass; angles live here until the way back is done.
struct TrainableModel::Pass {
  const Batch& batch;
  autograd::Tape tape;
  bool is_training;
  uint64_t seed;
  float scale;
  struct Angles {
    Tensor cos, sin, minus_sin;  // (tokens, rotary_dim / 2)
  };
  std::vector<Angles> angles = {};  // of each rope
  std::vector<Bias> relative_biases = {};
  mutable ops::ExpertLoad load = {};  // of layers with experts
  autograd::Var encoded = nullptr;    // what decoder layers look at: (source tokens, hidden)
};

}  // namespace nibble::train
