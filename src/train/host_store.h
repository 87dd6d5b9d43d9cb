// Checkpointed layer inputs in pinned main memory, copied beside the GPU's work.
#pragma once

#include <memory>
#include <vector>

#include "autograd/tape.h"
#include "ops/backend.h"

namespace nibble::train {

/// Copies by a stream of its own: out while the next layer runs, back one layer ahead of its use, so that two values
/// are on the GPU at a time. Borrows the backend, which must run on a GPU. Pinned memory is kept for the next pass.
class HostStore final : public autograd::Store {
 public:
  explicit HostStore(const ops::Backend& backend);
  ~HostStore() override;

  void put(Tensor value) override;
  Tensor take() override;
  /// Drops what an interrupted pass has left.
  void clear();
  int64_t pinned_bytes() const { return pinned_bytes_; }

 private:
  struct Slot {
    std::shared_ptr<void> memory;
    int64_t capacity = 0;
    DType dtype = DType::f32;
    Shape shape = {};
  };
  struct Moving {
    Tensor value;
    std::unique_ptr<device::CudaMark> done;
  };
  void settle();
  Moving fetch(const Slot& slot);

  const ops::Backend& backend_;
  std::shared_ptr<device::CudaStream> copies_;
  std::vector<Slot> slots_;  // the first `count_` hold values
  size_t count_ = 0;
  int64_t pinned_bytes_ = 0;
  Moving leaving_, coming_;  // `coming_` is the last of the slots
};

}  // namespace nibble::train
