// T5's relative positions: a learned bias per head for each bucket of distances. https://arxiv.org/abs/1910.10683
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace nibble::nn {

/// The bucket of `distance`, key minus query, as transformers computes it in fp32. The first half of the buckets hold
/// one distance each, the others grow by a factor up to `max_distance`. Bidirectional: one half for each sign; else a
/// key after the query counts as distance 0. max_distance must be more than half of a direction's buckets.
int64_t relative_bucket(int64_t distance, int64_t buckets, int64_t max_distance, bool is_bidirectional);

class RelativeBias {
 public:
  /// `weight` is (buckets, heads).
  RelativeBias(const Tensor& weight, int64_t max_distance, bool is_bidirectional);

  int64_t heads() const { return weight_.dim(1); }
  /// out (heads, 2 * span - 1): column i is of distance i - (span - 1).
  void fill(int64_t span, float* out) const;
  /// The way back: adds the gradient of what fill() gave to that of the weight.
  void add_gradient(int64_t span, const float* dout, float* dweight) const;

 private:
  Tensor weight_;  // f32
  int64_t max_distance_;
  bool is_bidirectional_;
};

}  // namespace nibble::nn
