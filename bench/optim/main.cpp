// bench_optim [--count N] [--threads N] [--rounds N] [--only TEXT] [--json FILE]
//
// Optimizer steps over one large tensor and over the tensors of LoRA on a 7B model, beside the machine's copy
// bandwidth.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <tuple>

#include "base/half.h"
#include "base/output.h"
#include "base/random.h"
#include "bench/harness.h"
#include "bench/lora_sizes.h"
#include "bench/machine/peaks.h"
#include "nibble/optim.h"

namespace nibble::bench {
namespace {

/// A contender and the bytes that one call must read and write.
struct Entry {
  Contender contender;
  double bytes;
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};

/// Parameters and gradients of one type, made once, on cache lines as a tensor's are.
template <typename T>
struct Arrays {
  std::vector<std::unique_ptr<T[], Free>> data, gradients;
  ParameterGroup group;

  Arrays(const Sizes& sizes, DType dtype) {
    Random random(1);
    std::vector<T> noise(1 << 20);
    for (T& x : noise) x = from_float<T>(static_cast<float>(random.normal()) * 0.02f);
    const auto make = [&](int64_t count, size_t shift) {
      const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
      std::unique_ptr<T[], Free> array(static_cast<T*>(std::aligned_alloc(64, bytes)));
      for (int64_t i = 0; i < count; ++i)
        array[static_cast<size_t>(i)] = noise[(static_cast<size_t>(i) + shift) % noise.size()];
      return array;
    };
    for (const int64_t count : sizes) {
      data.push_back(make(count, 0));
      gradients.push_back(make(count, 12345));
      group.params.push_back({"p" + std::to_string(group.params.size()),
                              {count},
                              data.back().get(),
                              dtype,
                              gradients.back().get(),
                              dtype});
    }
  }
};

template <typename T>
void add(std::vector<Entry>& entries, const std::string& what, const Sizes& sizes, DType dtype, int threads,
         const std::string& only) {
  double count = 0;
  for (const int64_t size : sizes) count += static_cast<double>(size);
  std::shared_ptr<Arrays<T>> arrays;
  for (const auto& [name, bits, states] : {std::tuple{"AdamW8bit", 8, 2},
                                           {"AdamW32bit", 32, 2},
                                           {"Lion8bit", 8, 1},
                                           {"RMSprop8bit", 8, 1},
                                           {"AdEMAMix8bit", 8, 3}}) {
    const std::string type = dtype == DType::f32 ? "fp32" : dtype == DType::bf16 ? "bf16" : "fp16";
    const std::string label = std::string(name) + " " + what + " " + type;
    if (label.find(only) == std::string::npos) continue;
    if (!arrays) arrays = std::make_shared<Arrays<T>>(sizes, dtype);
    const auto optimizer = std::make_shared<Optimizer>(name, std::vector<ParameterGroup>{arrays->group},
                                                       OptimizerOptions{.lr = 1e-5}, threads);
    const double per_state = bits == 8 ? 2 * (1 + 4.0 / 256) : 8;
    entries.push_back(
        {{label, [arrays, optimizer] { optimizer->step(); }}, count * (3.0 * sizeof(T) + states * per_state)});
  }
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  using namespace nibble;
  using namespace nibble::bench;
  const int threads = std::stoi(option(argc, argv, "threads", "0"));
  const std::string only = option(argc, argv, "only", "");
  ThreadPool pool(threads);
  std::vector<Entry> entries;
  for (const auto& peak : machine_peaks(pool))
    if (peak.contender.name == "copy") entries.push_back({peak.contender, peak.amount});
  const Sizes one{std::stoll(option(argc, argv, "count", "100000000"))};
  add<float>(entries, "one tensor", one, DType::f32, threads, only);
  add<bf16_t>(entries, "one tensor", one, DType::bf16, threads, only);
  add<f16_t>(entries, "one tensor", one, DType::f16, threads, only);
  add<float>(entries, "448 tensors", lora_sizes(), DType::f32, threads, only);
  add<bf16_t>(entries, "448 tensors", lora_sizes(), DType::bf16, threads, only);

  std::vector<Contender> contenders;
  contenders.reserve(entries.size());
  for (const auto& entry : entries) contenders.push_back(entry.contender);
  const auto timings = race(contenders, std::stoi(option(argc, argv, "rounds", "9")));
  Json json = Json::array();
  const double copy = entries.front().bytes / timings.front().min_us / 1e3;
  std::printf("%ld elements, %d threads\n%-32s %10s %10s %7s %7s %8s\n", static_cast<long>(one[0]), pool.threads(),
              "contender", "best ms", "median ms", "spread", "GB/s", "of copy");
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto& t = timings[i];
    const double bandwidth = entries[i].bytes / t.min_us / 1e3;
    std::printf("%-32s %10.3f %10.3f %6.1f%% %7.2f %7.1f%%\n", t.name.c_str(), t.min_us / 1e3, t.median_us / 1e3,
                t.spread * 100, bandwidth, bandwidth / copy * 100);
    Json row = to_json(t);
    row["gb_per_s"] = bandwidth;
    row["of_copy"] = bandwidth / copy;
    json.push_back(row);
  }
  const std::string file = option(argc, argv, "json", "");
  if (!file.empty()) write_file(file, dump_json(json));
}
