// Filling pinned buffers with all threads while earlier ones travel.
#include "device/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "device/cuda/status.h"

namespace nibble::device {
namespace {

constexpr int64_t kSlotBytes = int64_t{16} << 20;
constexpr int64_t kPieceBytes = int64_t{256} << 10;  // of one thread

void fill(std::byte* to, const std::byte* from, int64_t size_bytes, ThreadPool* pool) {
  const int64_t pieces = (size_bytes + kPieceBytes - 1) / kPieceBytes;
  auto fill_piece = [&](int64_t piece, int) {
    const int64_t begin = piece * kPieceBytes;
    std::memcpy(to + begin, from + begin, static_cast<size_t>(std::min(kPieceBytes, size_bytes - begin)));
  };
  if (pool && pieces > 1) {
    pool->parallel_for(pieces, fill_piece);
  } else {
    for (int64_t piece = 0; piece < pieces; ++piece) fill_piece(piece, 0);
  }
}

}  // namespace

StagingRing::~StagingRing() {
  for (const Slot& slot : slots_) {
    if (slot.copied) cudaEventSynchronize(slot.copied);  // an error elsewhere may have left copies under way
    if (slot.copied) cudaEventDestroy(slot.copied);
    if (slot.data) cudaFreeHost(slot.data);
  }
}

StagingRing::Slot& StagingRing::next_slot() {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  if (!slot.copied) check_cuda(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming), "creating an event");
  if (!slot.data)
    check_cuda(cudaMallocHost(&slot.data, static_cast<size_t>(kSlotBytes)), "allocating 16 MiB of pinned memory");
  check_cuda(cudaEventSynchronize(slot.copied), "waiting for a copy to the GPU");  // at once, before the first
  return slot;
}

void StagingRing::upload(void* to, const void* from, int64_t size_bytes, ThreadPool* pool) {
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  for (int64_t begin = 0; begin < size_bytes; begin += kSlotBytes) {
    const int64_t count = std::min(kSlotBytes, size_bytes - begin);
    Slot& slot = next_slot();
    fill(static_cast<std::byte*>(slot.data), source + begin, count, pool);
    check_cuda(cudaMemcpyAsync(target + begin, slot.data, static_cast<size_t>(count), cudaMemcpyHostToDevice, stream_),
               "copying to the GPU");
    check_cuda(cudaEventRecord(slot.copied, stream_), "recording an event");
  }
}

}  // namespace nibble::device
