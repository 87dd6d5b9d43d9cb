// Device memory is reused in the order of the main stream, so that each copy is fenced by marks of both streams.
#include "train/host_store.h"

#include <utility>

namespace nibble::train {

HostStore::HostStore(const ops::Backend& backend)
    : backend_(backend), copies_(device::open_cuda(backend.device().cuda)) {}

HostStore::~HostStore() {
  try {
    copies_->synchronize();  // pinned memory goes before the stream
  } catch (const std::exception&) {
    // A GPU that is lost has been reported where it was.
  }
}

/// Later work of the main stream, which may reuse the memory, begins when the value has left it.
void HostStore::settle() {
  if (!leaving_.value) return;
  backend_.cuda()->wait_for(*leaving_.done);
  leaving_ = {};
}

void HostStore::put(Tensor value) {
  settle();
  if (count_ == slots_.size()) slots_.emplace_back();
  Slot& slot = slots_[count_];
  if (slot.capacity < value.size_bytes()) {
    copies_->synchronize();
    slot.memory = nullptr;
    pinned_bytes_ -= std::exchange(slot.capacity, 0);
    slot.memory = copies_->allocate_pinned(value.size_bytes());
    slot.capacity = value.size_bytes();
    pinned_bytes_ += slot.capacity;
  }
  slot.dtype = value.dtype();
  slot.shape = value.shape();
  copies_->wait_for(*backend_.cuda()->mark());
  copies_->copy(slot.memory.get(), value.data(), value.size_bytes());
  leaving_ = {std::move(value), copies_->mark()};
  ++count_;
}

/// Into memory that earlier work of the main stream may still use.
HostStore::Moving HostStore::fetch(const Slot& slot) {
  Tensor value = backend_.empty(slot.dtype, slot.shape);
  copies_->wait_for(*backend_.cuda()->mark());
  copies_->copy(value.data(), slot.memory.get(), value.size_bytes());
  return {std::move(value), copies_->mark()};
}

Tensor HostStore::take() {
  settle();
  Moving now = coming_.value ? std::exchange(coming_, {}) : fetch(slots_[count_ - 1]);
  backend_.cuda()->wait_for(*now.done);
  --count_;
  if (count_ > 0) coming_ = fetch(slots_[count_ - 1]);
  return std::move(now.value);
}

void HostStore::clear() {
  count_ = 0;
  if (!leaving_.value && !coming_.value) return;
  copies_->synchronize();
  leaving_ = {};
  coming_ = {};
}

}  // namespace nibble::train
