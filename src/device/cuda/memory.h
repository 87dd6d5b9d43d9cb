// Device memory of one stream, kept for reuse when it is let go.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace nibble::device {

/// Blocks are reused in the order of one stream, so that no wait is needed. Thread-safe: owners may let go anywhere.
class CudaMemory : public std::enable_shared_from_this<CudaMemory> {
 public:
  explicit CudaMemory(int index) : index_(index) {}
  ~CudaMemory();

  /// Errors: out_of_memory with the numbers.
  std::shared_ptr<void> allocate(int64_t size_bytes);
  /// Of all of this process on the GPU; 0: none.
  void limit(int64_t most_bytes);
  void release_unused();
  int64_t reserved_bytes() const;
  int64_t peak_bytes() const;

 private:
  bool is_within_limit(int64_t size_bytes) const;
  void count(int64_t size_bytes);
  void* take_cached(int64_t size_bytes, int64_t& block_bytes);
  void* take_new(int64_t size_bytes);
  void* try_new(int64_t size_bytes);
  void release_cached();
  void give_back(void* block, int64_t size_bytes);

  const int index_;
  mutable std::recursive_mutex mutex_;    // what is offered may be this stream's own
  std::multimap<int64_t, void*> cached_;  // by size
  int64_t reserved_bytes_ = 0, cached_bytes_ = 0, peak_bytes_ = 0;
};

}  // namespace nibble::device
