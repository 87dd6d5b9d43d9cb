#include "bench/cuda_matmul/energy.h"

#include <dlfcn.h>

#include <chrono>
#include <thread>

#include "bench/cuda_matmul/weights.h"

namespace nibble::bench {
namespace {

constexpr double kWarmUpSeconds = 0.3, kSeconds = 0.7;

/// NVML of the current GPU, opened at run time.
class Nvml {
 public:
  Nvml() {
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    int device = 0;
    char bus[32];
    const auto init = load<int()>(library, "nvmlInit_v2");
    const auto find = load<int(const char*, void**)>(library, "nvmlDeviceGetHandleByPciBusId_v2");
    energy_ = load<int(void*, unsigned long long*)>(library, "nvmlDeviceGetTotalEnergyConsumption");
    clock_ = load<int(void*, int, unsigned*)>(library, "nvmlDeviceGetClockInfo");
    counts_ = init && find && energy_ && clock_ && init() == 0 && cudaGetDevice(&device) == cudaSuccess &&
              cudaDeviceGetPCIBusId(bus, sizeof bus, device) == cudaSuccess && find(bus, &device_) == 0;
    unsigned long long energy = 0;
    counts_ = counts_ && energy_(device_, &energy) == 0;
  }

  bool counts() const { return counts_; }
  /// Since the driver was loaded; it takes a new value every few hundredths of a second.
  double joules() const {
    unsigned long long millijoules = 0;
    energy_(device_, &millijoules);
    return static_cast<double>(millijoules) * 1e-3;
  }
  double sm_megahertz() const {
    constexpr int kSmClock = 1;
    unsigned megahertz = 0;
    clock_(device_, kSmClock, &megahertz);
    return megahertz;
  }

 private:
  template <typename Function>
  static Function* load(void* library, const char* name) {
    return library ? reinterpret_cast<Function*>(dlsym(library, name)) : nullptr;
  }

  int (*energy_)(void*, unsigned long long*) = nullptr;
  int (*clock_)(void*, int, unsigned*) = nullptr;
  void* device_ = nullptr;
  bool counts_ = false;
};

/// Of one call.
struct Cost {
  double seconds, watts, megahertz;
  double millijoules() const { return seconds * watts * 1e3; }
};

/// Replays `graph` for a second; power is that between two moments at which the count changed.
Cost cost_of(Gpu& gpu, const Nvml& nvml, device::CudaGraph& graph, int64_t calls) {
  using Clock = std::chrono::steady_clock;
  Event begin, middle, end;
  begin.record(*gpu.stream);
  for (int i = 0; i < 3; ++i) graph.launch();
  end.record(*gpu.stream);
  const double estimate = end.seconds_since(begin) / 3;
  const int before = static_cast<int>(kWarmUpSeconds / estimate) + 1,
            replays = static_cast<int>(kSeconds / estimate) + 1;
  std::thread launcher([&] {
    gpu.stream->activate();
    for (int i = 0; i < before; ++i) graph.launch();
    middle.record(*gpu.stream);
    for (int i = 0; i < replays; ++i) graph.launch();
    end.record(*gpu.stream);
    gpu.stream->synchronize();
  });
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  std::vector<std::pair<double, double>> changes;  // seconds, joules
  std::vector<double> clocks;
  double last = nvml.joules();
  while (elapsed() < kWarmUpSeconds + 0.95 * kSeconds) {
    if (const double joules = nvml.joules(); joules != last) {
      last = joules;
      if (elapsed() > kWarmUpSeconds) changes.emplace_back(elapsed(), joules);
    }
    if (elapsed() > kWarmUpSeconds) clocks.push_back(nvml.sm_megahertz());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  launcher.join();
  Cost cost{end.seconds_since(middle) / static_cast<double>(replays * calls), 0, median(clocks)};
  if (changes.size() > 1)
    cost.watts = (changes.back().second - changes.front().second) / (changes.back().first - changes.front().first);
  return cost;
}

void print_costs(Gpu& gpu, const Nvml& nvml, int64_t rows, int64_t cols, const std::vector<int64_t>& ms) {
  const FourBitWeights packed(gpu, rows, cols, true);
  const PlainWeights dense(gpu, rows, cols, DType::bf16);
  for (const int64_t m : ms) {
    const auto x = random_normal(gpu, DType::bf16, m * cols), y = gpu.stream->allocate(m * rows * 2);
    const kernels::MatmulInput input{x.get(), m, cols, DType::bf16, false, DType::bf16};
    const auto cost = [&](const auto& weights) {
      const auto graph = capture_products(gpu, weights, weights.copies(), input, y.get());
      return cost_of(gpu, nvml, *graph, weights.copies());
    };
    const Cost of[2] = {cost(packed), cost(dense)};
    gpu.stream->check();
    std::printf("| %lld x %lld, %lld |", static_cast<long long>(rows), static_cast<long long>(cols),
                static_cast<long long>(m));
    for (const Cost& c : of)
      std::printf(" %.1f | %.2f | %.0f | %.0f |", c.seconds * 1e6, c.millijoules(), c.watts, c.megahertz);
    std::printf(" %.2f | %.2f |\n", of[0].seconds / of[1].seconds, of[0].millijoules() / of[1].millijoules());
  }
}

}  // namespace

void bench_energy(Gpu& gpu) {
  const Nvml nvml;
  if (!nvml.counts()) {
    std::printf("the driver does not count this GPU's energy, or NVML is missing\n");
    return;
  }
  std::printf("| NF4 + double quantization | us | mJ | W | MHz | bf16: us | mJ | W | MHz | time | energy |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|---|\n");
  print_costs(gpu, nvml, 11008, 4096, {128, 256, 384, 512, 768, 1024, 2048, 4096});
  print_costs(gpu, nvml, 4096, 4096, {256, 512});
  print_costs(gpu, nvml, 4096, 11008, {512});
}

}  // namespace nibble::bench
