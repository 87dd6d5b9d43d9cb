// A cache of blocks by size, with no splitting: weights stay for good, and a step asks for the same sizes again.
#include "device/cuda/memory.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <vector>

#include "base/error.h"
#include "device/cuda.h"
#include "device/cuda/status.h"

namespace nibble::device {
namespace {

constexpr int64_t kSmall = int64_t{1} << 20;

/// Few distinct sizes, so that blocks fit again: 512 bytes for small ones, 64 KiB for the others.
int64_t rounded(int64_t size_bytes) {
  const int64_t unit = size_bytes < kSmall ? 512 : 65536;
  return (std::max<int64_t>(size_bytes, 1) + unit - 1) / unit * unit;
}

/// What the streams of this process have taken from a GPU together, and may take (0: anything); what they can do
/// without.
struct DeviceTotal {
  std::atomic<int64_t> reserved_bytes = 0, limit_bytes = 0;
  std::atomic<const CudaMemory*> limited_by = nullptr;
  std::recursive_mutex mutex;  // held while offers are used: none goes away meanwhile
  std::vector<std::shared_ptr<std::function<bool()>>> offers;
};

DeviceTotal& total_of(int index) {
  static std::array<DeviceTotal, 64> totals;
  return totals[static_cast<size_t>(index) % totals.size()];
}

/// True if one of the offers gave memory back.
bool use_offers(int index) {
  DeviceTotal& total = total_of(index);
  const std::lock_guard lock(total.mutex);
  const auto offers = total.offers;
  return std::any_of(offers.begin(), offers.end(), [](const auto& release) { return (*release)(); });
}

}  // namespace

std::shared_ptr<void> offer_memory(int index, std::function<bool()> release) {
  DeviceTotal& total = total_of(index);
  auto offer = std::make_shared<std::function<bool()>>(std::move(release));
  const std::lock_guard lock(total.mutex);
  total.offers.push_back(offer);
  return {offer.get(), [&total, offer](void*) {
            const std::lock_guard gone(total.mutex);
            std::erase(total.offers, offer);
          }};
}

void CudaMemory::limit(int64_t most_bytes) {
  total_of(index_).limit_bytes = most_bytes;
  total_of(index_).limited_by = this;
}

bool CudaMemory::is_within_limit(int64_t size_bytes) const {
  const DeviceTotal& total = total_of(index_);
  return total.limit_bytes == 0 || total.reserved_bytes + size_bytes <= total.limit_bytes;
}

void CudaMemory::count(int64_t size_bytes) {
  reserved_bytes_ += size_bytes;
  total_of(index_).reserved_bytes += size_bytes;
}

CudaMemory::~CudaMemory() {
  if (total_of(index_).limited_by == this) limit(0);
  if (cudaSetDevice(index_) == cudaSuccess) release_cached();
}

std::shared_ptr<void> CudaMemory::allocate(int64_t size_bytes) {
  if (size_bytes < 0 || size_bytes > int64_t{1} << 50)
    fail(ErrorCode::out_of_memory, "cuda:{}: out of memory: {} bytes were asked for", index_, size_bytes);
  int64_t block_bytes = rounded(size_bytes);
  void* block = nullptr;
  {
    const std::lock_guard lock(mutex_);
    block = take_cached(block_bytes, block_bytes);
    if (!block) block = take_new(block_bytes);
  }
  return {block, [self = shared_from_this(), block_bytes](void* pointer) { self->give_back(pointer, block_bytes); }};
}

/// A block of at most a quarter more than asked for.
void* CudaMemory::take_cached(int64_t size_bytes, int64_t& block_bytes) {
  const auto found = cached_.lower_bound(size_bytes);
  if (found == cached_.end() || found->first > size_bytes + size_bytes / 4) return nullptr;
  void* block = found->second;
  block_bytes = found->first;
  cached_bytes_ -= block_bytes;
  cached_.erase(found);
  return block;
}

/// Null where the limit or the GPU says no.
void* CudaMemory::try_new(int64_t size_bytes) {
  if (!is_within_limit(size_bytes)) return nullptr;
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, static_cast<size_t>(size_bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: the next call starts clean
    return nullptr;
  }
  check_cuda(status, "allocating device memory");
  return block;
}

void* CudaMemory::take_new(int64_t size_bytes) {
  check_cuda(cudaSetDevice(index_), "choosing the GPU");
  void* block = try_new(size_bytes);
  if (!block && !cached_.empty()) {
    release_cached();
    block = try_new(size_bytes);
  }
  while (!block && use_offers(index_)) block = try_new(size_bytes);
  if (!block && !is_within_limit(size_bytes))
    fail(ErrorCode::out_of_memory,
         "cuda:{}: out of memory: {} bytes were asked for, {} of the {} of max_memory are in use", index_, size_bytes,
         total_of(index_).reserved_bytes.load(), total_of(index_).limit_bytes.load());
  if (!block) {
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    fail(ErrorCode::out_of_memory,
         "cuda:{}: out of memory: {} bytes were asked for, {} of {} are free, {} are in use here", index_, size_bytes,
         free_bytes, total_bytes, reserved_bytes_ - cached_bytes_);
  }
  count(size_bytes);
  peak_bytes_ = std::max(peak_bytes_, reserved_bytes_);
  return block;
}

/// cudaFree waits for the work that may still use a block, and fails only where that failed: as every later call will.
void CudaMemory::release_cached() {
  for (const auto& [size, block] : cached_) {
    cudaFree(block);
    count(-size);
  }
  cached_.clear();
  cached_bytes_ = 0;
}

void CudaMemory::give_back(void* block, int64_t size_bytes) {
  const std::lock_guard lock(mutex_);
  cached_.emplace(size_bytes, block);
  cached_bytes_ += size_bytes;
}

void CudaMemory::release_unused() {
  const std::lock_guard lock(mutex_);
  check_cuda(cudaSetDevice(index_), "choosing the GPU");
  release_cached();
}

int64_t CudaMemory::reserved_bytes() const {
  const std::lock_guard lock(mutex_);
  return reserved_bytes_;
}

int64_t CudaMemory::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_bytes_;
}

}  // namespace nibble::device
