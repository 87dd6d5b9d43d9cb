// What the CPU side of this machine is and has.
#pragma once

#include <cstdint>
#include <string>

#include "base/thread_pool.h"

namespace nibble::device {

struct CpuDescription {
  std::string model_name;  // as the system reports it, or "unknown processor"
  int64_t memory_bytes = 0;
  int64_t free_memory_bytes = 0;  // that a new process could use without swapping, within the cgroup's limit
};

CpuDescription describe_cpu();

/// VmHWM: the highest resident set of this process, mapped files included.
int64_t peak_rss_bytes();

/// Bytes a second read from memory by all threads of `pool`, best of several passes over a buffer far larger than
/// the caches.
double measure_read_bandwidth(ThreadPool& pool);

}  // namespace nibble::device
