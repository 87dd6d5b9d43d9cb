// /proc and a streaming read.
#include "device/cpu.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <vector>

namespace nibble::device {
namespace {

/// The number behind `key` in a "key: value kB" file, in bytes; -1 if it is not there.
int64_t read_kilobytes(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line))
    if (line.starts_with(key)) return std::strtoll(line.c_str() + key.size(), nullptr, 10) * 1024;
  return -1;
}

/// The number in a one-line file, or -1 ("max" counts as none).
int64_t read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;
}

}  // namespace

CpuDescription describe_cpu() {
  CpuDescription result{"unknown processor", read_kilobytes("/proc/meminfo", "MemTotal:"),
                        read_kilobytes("/proc/meminfo", "MemAvailable:")};
  const int64_t limit = read_number("/sys/fs/cgroup/memory.max");
  const int64_t used = read_number("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) {
    result.memory_bytes = std::min(result.memory_bytes, limit);
    result.free_memory_bytes = std::min(result.free_memory_bytes, std::max<int64_t>(limit - used, 0));
  }
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line))
    if (line.starts_with("model name")) {
      result.model_name = line.substr(std::min(line.size(), line.find(':') + 2));
      break;
    }
  return result;
}

int64_t peak_rss_bytes() {
  const int64_t peak = read_kilobytes("/proc/self/status", "VmHWM:");
  if (peak >= 0) return peak;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

double measure_read_bandwidth(ThreadPool& pool) {
  constexpr int64_t kWords = int64_t{24} << 20;  // 192 MiB
  constexpr int64_t kChunk = int64_t{1} << 15;   // 256 KiB: many chunks keep the threads even
  std::vector<uint64_t> buffer(kWords, 1);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int pass = 0; pass < 6; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    pool.parallel_for(kWords / kChunk, [&](int64_t chunk, int) {
      const uint64_t* words = buffer.data() + chunk * kChunk;
      uint64_t sums[8] = {};
      for (int64_t i = 0; i < kChunk; i += 8)
        for (int64_t j = 0; j < 8; ++j) sums[j] += words[i + j];
      uint64_t total = 0;
      for (const uint64_t sum : sums) total += sum;
      sink.fetch_add(total, std::memory_order_relaxed);
    });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, double(kWords) * 8 / seconds);
  }
  return sink.load() > 0 ? best : 0;
}

}  // namespace nibble::device
