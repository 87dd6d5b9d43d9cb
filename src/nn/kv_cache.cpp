// Growth and copies of a sequence's keys and values.
#include "nn/kv_cache.h"

#include <algorithm>
#include <atomic>

#include "base/checked.h"

namespace nibble::nn {

KvCache::KvCache(const ops::Backend& backend, int64_t layers, int64_t kv_heads, int64_t head_dim, DType dtype)
    : backend_(&backend),
      layers_(static_cast<size_t>(layers)),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      dtype_(dtype) {}

int64_t KvCache::size_bytes() const {
  const int64_t row = head_dim_ * size_of(dtype_) + (dtype_ == DType::i8 ? size_of(DType::f32) : 0);
  return static_cast<int64_t>(layers_.size()) * 2 * kv_heads_ * capacity_ * row;
}

void KvCache::reserve(int64_t tokens) {
  if (tokens <= capacity_) return;
  KvCache grown = *this;  // what follows may fail
  grown.capacity_ = std::max(tokens, capacity_ + std::min<int64_t>(capacity_, 4096));
  for (Layer& layer : grown.layers_) {
    layer.keys = backend_->empty(dtype_, {kv_heads_, grown.capacity_, head_dim_});
    layer.values = backend_->empty(dtype_, {kv_heads_, grown.capacity_, head_dim_});
    if (dtype_ != DType::i8) continue;
    layer.key_scales = backend_->empty(DType::f32, {kv_heads_, grown.capacity_});
    layer.value_scales = backend_->empty(DType::f32, {kv_heads_, grown.capacity_});
  }
  static std::atomic<int64_t> storages{0};
  grown.storage_id_ = ++storages;
  grown.copy_tokens(*this);
  *this = std::move(grown);
}

void KvCache::assign(const KvCache& other) {
  length_ = 0;
  reserve(other.capacity_);  // the next token must not copy it again
  length_ = other.length_;
  copy_tokens(other);
}

void KvCache::copy_tokens(const KvCache& from) {
  if (length_ == 0) return;
  const auto copy = [&](Tensor& target, const Tensor& source) {
    if (!target) return;
    const int64_t row = target.size_bytes() / (kv_heads_ * capacity_);
    backend_->copy_rows(target.data(), capacity_ * row, source.data(), from.capacity_ * row, length_ * row, kv_heads_);
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    copy(layers_[i].keys, from.layers_[i].keys);
    copy(layers_[i].values, from.layers_[i].values);
    copy(layers_[i].key_scales, from.layers_[i].key_scales);
    copy(layers_[i].value_scales, from.layers_[i].value_scales);
  }
}

}  // namespace nibble::nn
