// What this machine and this binary can do: devices, instruction sets, kernels.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

std::string_view version();

struct DeviceInfo {
  std::string name;  // "cpu"
  std::string description;
  int64_t memory_bytes = 0;
  int64_t free_memory_bytes = 0;
};

struct IsaInfo {
  std::string name;
  bool is_supported = false;
  bool is_active = false;
};

struct KernelRow {
  std::string entry;                  // "matmul_4bit"
  std::vector<std::string> backends;  // that have it
};

/// What this process could do with NVIDIA GPUs.
struct CudaInfo {
  std::string missing;    // why there is no usable GPU; empty if there is one
  std::string driver;     // the newest CUDA version that the driver supports; empty without a driver
  std::string runtime;    // the CUDA version of this binary; empty if it was built without
  std::string cublas_lt;  // the version of the library for products of many rows; empty without a GPU, or if it is not
                          // installed: they run on kernels of this binary then, slower
};

struct SystemInfo {
  std::vector<DeviceInfo> devices;  // the CPU, then "cuda:0", ...
  CudaInfo cuda;
  std::vector<IsaInfo> isas;
  std::vector<KernelRow> kernels;
  std::vector<std::string> formats;
  std::vector<std::string> architectures;
  int threads = 0;
};

SystemInfo system_info();

/// CudaInfo::cublas_lt alone.
std::string cublas_lt_version();

/// With NIBBLE_PROFILE=1: seconds and calls of each kernel entry so far, a line each; else empty.
std::string profile_report();

/// Highest resident memory of this process so far, resident pages of mapped files included.
int64_t peak_rss_bytes();

/// Streaming read bandwidth of main memory with `threads` threads, in bytes a second; takes about 0.3 s.
double measure_read_bandwidth(int threads);

}  // namespace nibble
