// Thread-local buffers that grow by half and are freed with their thread.
#include "kernels/cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace nibble::kernels::cpu {
namespace {

struct Buffer {
  void* data = nullptr;
  int64_t size = 0;
  ~Buffer() { std::free(data); }
};

thread_local Buffer buffers[static_cast<int>(Scratch::count)];

}  // namespace

void* scratch(Scratch use, int64_t size_bytes) {
  Buffer& buffer = buffers[static_cast<int>(use)];
  if (size_bytes > buffer.size) {
    std::free(buffer.data);
    buffer.size = (size_bytes + size_bytes / 2 + 63) / 64 * 64;
    buffer.data = std::aligned_alloc(64, static_cast<size_t>(buffer.size));
    if (!buffer.data) {
      buffer.size = 0;
      throw std::bad_alloc();
    }
  }
  return buffer.data;
}

}  // namespace nibble::kernels::cpu
