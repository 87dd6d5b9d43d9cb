// Optimizer states in locked main memory that pass through a few pages of the GPU's memory during a step.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "device/cuda.h"
#include "kernels/kernels.h"
#include "ops/backend.h"

namespace nibble::optim {

/// Elements that the start of each state is a multiple of in allocate()'s blocks, and in pages: neighbours then travel
/// in one copy.
inline constexpr int64_t kPageAlignment = kernels::kStateBlock;

/// Three streams: one brings pages in, the backend's works on them, one takes them out.
class Pager {
 public:
  /// `backend` is a GPU's and outlives it. Errors: device.
  explicit Pager(ops::Backend& backend);
  ~Pager();

  /// Zeros in locked main memory. Errors: out_of_memory.
  std::shared_ptr<void> allocate(int64_t size_bytes);

  /// A step of jobs whose states, but not their absmax, lie in what allocate() gave; norms are not supported. Returns
  /// when the work is under way.
  void step(kernels::OptimizerRule rule, std::span<const kernels::OptimizerJob32Bit> jobs);
  void step(const kernels::OptimizerStep8BitArgs& args);
  /// Waits until all states are back.
  void finish();

 private:
  template <typename Job>
  struct Piece;
  template <typename Job>
  struct Page;
  struct Slot {
    std::shared_ptr<void> memory;
    std::unique_ptr<device::CudaMark> loaded;
    std::shared_ptr<device::CudaMark> written;
  };
  /// What a step sent home: a step over the same states waits for one page at a time.
  struct Sent {
    int64_t limit = 0;
    std::vector<std::pair<const void*, int64_t>> states;
    std::vector<std::shared_ptr<device::CudaMark>> written;  // page by page
  };

  template <typename Job, typename Launch>
  void run(std::span<const Job> jobs, Launch&& launch);
  int64_t page_bytes(int64_t state_bytes);
  template <typename Job>
  std::vector<Page<Job>> cut(std::span<const Job> jobs, int64_t limit);
  template <typename Job>
  void copy_states(device::CudaStream& stream, const Page<Job>& page, bool is_in);

  ops::Backend& backend_;
  std::shared_ptr<device::CudaStream> in_, out_;
  std::array<Slot, 3> slots_;
  size_t next_slot_ = 0;
  int64_t slot_bytes_ = 0;
  std::array<Sent, 2> sent_;  // of 32-bit states, of 8-bit ones
};

}  // namespace nibble::optim
