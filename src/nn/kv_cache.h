// Keys and values of one sequence in every layer.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/backend.h"
#include "tensor/tensor.h"

namespace nibble::nn {

/// Per layer (kv_heads, capacity, head_dim) keys and values, of i8 with a scale for each. Grows by doubling; contents
/// survive.
class KvCache {
 public:
  /// The sizes of a layer's heads may differ between models, not between layers.
  KvCache(const ops::Backend& backend, int64_t layers, int64_t kv_heads, int64_t head_dim, DType dtype);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  int64_t size_bytes() const;
  /// Changes when keys() and values() do; no other cache ever has the same.
  int64_t storage_id() const { return storage_id_; }
  DType dtype() const { return dtype_; }

  /// Makes room for `tokens` in all. Errors: out_of_memory, which leaves it as it was.
  void reserve(int64_t tokens);
  /// After all layers have appended; or, to a smaller length, forgets the newest.
  void set_length(int64_t length) { length_ = length; }
  /// Becomes a copy of `other`'s tokens.
  void assign(const KvCache& other);

  void* keys(int64_t layer) { return layers_[layer].keys.data(); }
  void* values(int64_t layer) { return layers_[layer].values.data(); }
  /// (kv_heads, capacity); null unless the cache is of i8.
  float* key_scales(int64_t layer) { return scales_of(layers_[layer].key_scales); }
  float* value_scales(int64_t layer) { return scales_of(layers_[layer].value_scales); }

 private:
  struct Layer {
    Tensor keys, values;              // (kv_heads, capacity, head_dim)
    Tensor key_scales, value_scales;  // f32 (kv_heads, capacity), for i8
  };
  static float* scales_of(Tensor& scales) { return scales ? scales.as<float>() : nullptr; }
  void copy_tokens(const KvCache& from);
  const ops::Backend* backend_;
  std::vector<Layer> layers_;
  int64_t kv_heads_, head_dim_;
  DType dtype_;
  int64_t capacity_ = 0;
  int64_t length_ = 0;
  int64_t storage_id_ = 0;
};

}  // namespace nibble::nn
