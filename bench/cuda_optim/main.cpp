// bench_cuda_optim [--count N] [--rounds N] [--only TEXT] [--json FILE]
//
// AdamW and Lion steps on a GPU: one large tensor, the tensors of LoRA on a 7B model, and states that are paged, with
// room on the GPU and without (moving), beside the bandwidth of the GPU's memory and of its link.
#include <chrono>
#include <cstdio>
#include <memory>

#include "base/half.h"
#include "base/output.h"
#include "base/random.h"
#include "bench/harness.h"
#include "bench/lora_sizes.h"
#include "device/cuda.h"
#include "nibble/optim.h"

namespace nibble::bench {
namespace {

/// Parameters and gradients of one type in device memory.
struct Arrays {
  std::vector<std::shared_ptr<void>> memory;
  ParameterGroup group;
  int64_t count = 0;

  Arrays(device::CudaStream& stream, const Sizes& sizes, DType dtype) {
    Random random(1);
    std::vector<std::byte> noise(size_t{1} << 22);
    for (size_t i = 0; i < noise.size() / size_of(dtype); ++i) {
      const float value = static_cast<float>(random.normal()) * 0.02f;
      if (dtype == DType::f32)
        reinterpret_cast<float*>(noise.data())[i] = value;
      else
        reinterpret_cast<bf16_t*>(noise.data())[i] = to_bf16(value);
    }
    const auto make = [&](int64_t elements, size_t shift) {
      const int64_t size = elements * size_of(dtype);
      memory.push_back(stream.allocate(size));
      for (int64_t begin = 0; begin < size; begin += static_cast<int64_t>(noise.size() / 2))
        stream.upload(static_cast<std::byte*>(memory.back().get()) + begin, noise.data() + shift,
                      std::min<int64_t>(size - begin, static_cast<int64_t>(noise.size() / 2)));
      return memory.back().get();
    };
    for (const int64_t elements : sizes) {
      count += elements;
      void* data = make(elements, 0);
      group.params.push_back(
          {"p" + std::to_string(group.params.size()), {elements}, data, dtype, make(elements, 65536), dtype});
    }
  }
};

double milliseconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

/// Milliseconds a step: the best of `rounds` runs of ten, waiting for the GPU after each run.
double time_steps(device::CudaStream& all, Optimizer& optimizer, int rounds) {
  double best = 1e9;
  for (int round = 0; round <= rounds; ++round) {
    all.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 10; ++i) optimizer.step();
    optimizer.synchronize();
    if (round > 0) best = std::min(best, milliseconds_since(begin) / 10);
  }
  return best;
}

/// GB/s that copies both ways move at the same time, each way.
double link_bandwidth() {
  constexpr int64_t kBytes = int64_t{256} << 20;
  const auto up = device::open_cuda(0), down = device::open_cuda(0);
  const auto from = up->allocate_pinned(kBytes), to = up->allocate_pinned(kBytes);
  const auto a = up->allocate(kBytes), b = down->allocate(kBytes);
  double best = 1e9;
  for (int round = 0; round < 6; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 4; ++i) {
      up->copy(a.get(), from.get(), kBytes);
      down->copy(to.get(), b.get(), kBytes);
    }
    up->synchronize();
    down->synchronize();
    best = std::min(best, milliseconds_since(begin));
  }
  return 4 * static_cast<double>(kBytes) / best / 1e6;
}

/// Too little for the states of any row that are to stay in main memory.
constexpr int64_t kRoomForPages = int64_t{74} << 20;

struct Row {
  const char* optimizer;
  const char* what;
  DType dtype;
  Sizes sizes;
  bool has_room = true;  // on the GPU, for states that may be paged
};

void run(const std::vector<Row>& rows, const std::string& only, int rounds, Json& json) {
  const auto stream = device::open_cuda(0);
  const double memory = device::measure_read_bandwidth(*stream) / 1e9, link = link_bandwidth();
  std::printf("%s: copies in memory %.0f GB/s, link %.1f GB/s each way at once\n%-20s %-14s %-5s %10s %9s %9s %9s\n",
              stream->description().name.c_str(), memory, link, "optimizer", "parameters", "type", "ms", "limit",
              "GB/s", "of limit");
  std::fflush(stdout);
  for (const Row& row : rows) {
    const std::string name = row.optimizer, label = name + " " + row.what + " " + std::string(name_of(row.dtype));
    if (label.find(only) == std::string::npos) continue;
    const Arrays arrays(*stream, row.sizes, row.dtype);
    if (!row.has_room) {
      stream->release_unused();
      stream->limit_memory(stream->reserved_bytes() + kRoomForPages);
    }
    Optimizer optimizer(name, {arrays.group}, {.lr = 1e-5}, 1, "cuda:0");
    const double ms = time_steps(*stream, optimizer, rounds);
    stream->limit_memory(0);
    const bool is_moving = optimizer.is_paged() && !row.has_room;
    const double states = (name.find("Lion") == std::string::npos ? 2 : 1) * static_cast<double>(arrays.count);
    const double paged = states * (name.ends_with("8bit") ? 1 : 4);
    const double bytes = static_cast<double>(arrays.count * size_of(row.dtype)) * 3 +
                         2 * states * (name.ends_with("8bit") ? 1 + 4.0 / 256 : 4);
    const double limit = is_moving ? paged / link / 1e6 : bytes / memory / 1e6;
    std::printf("%-20s %-14s %-5s %10.3f %9.3f %9.0f %8.1f%%\n", row.optimizer, row.what,
                row.dtype == DType::f32 ? "fp32" : "bf16", ms, limit, (is_moving ? paged : bytes) / ms / 1e6,
                limit / ms * 100);
    std::fflush(stdout);
    json.push_back({{"optimizer", name},
                    {"parameters", row.what},
                    {"dtype", name_of(row.dtype)},
                    {"ms", ms},
                    {"limit_ms", limit}});
  }
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  using namespace nibble;
  using namespace nibble::bench;
  const Sizes one{std::stoll(option(argc, argv, "count", "500000000"))}, lora = lora_sizes();
  std::vector<Row> rows;
  for (const char* name : {"AdamW8bit", "AdamW32bit", "Lion8bit"})
    for (const DType dtype : {DType::bf16, DType::f32}) {
      rows.push_back({name, "one tensor", dtype, one});
      rows.push_back({name, "448 tensors", dtype, lora});
    }
  for (const bool has_room : {true, false})
    for (const char* name : {"PagedAdamW8bit", "PagedAdamW32bit"}) {
      rows.push_back({name, has_room ? "one tensor" : "one, moving", DType::bf16, one, has_room});
      rows.push_back({name, has_room ? "448 tensors" : "448, moving", DType::f32, lora, has_room});
    }
  Json json = Json::array();
  run(rows, option(argc, argv, "only", ""), std::stoi(option(argc, argv, "rounds", "5")), json);
  const std::string file = option(argc, argv, "json", "");
  if (!file.empty()) write_file(file, dump_json(json));
}
