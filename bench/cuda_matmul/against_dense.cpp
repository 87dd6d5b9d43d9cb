#include "bench/cuda_matmul/against_dense.h"

#include <chrono>
#include <cmath>
#include <string>
#include <thread>

#include "bench/cuda_matmul/weights.h"

namespace nibble::bench {
namespace {

using kernels::MatmulInput;

/// How long products of a cell run: before anything is counted, and then.
constexpr double kWarmUpSeconds = 0.08, kSeconds = 0.3;
constexpr int kLeastRounds = 21, kMostRounds = 201;

/// Of two graphs: replays in turn, all of them asked for at once unless there are pauses.
struct Round {
  Event begin[2], end[2];

  void replay(Gpu& gpu, device::CudaGraph* const (&graphs)[2], int pause_ms) {
    for (int i = 0; i < 2; ++i) {
      if (pause_ms > 0) {
        gpu.stream->synchronize();
        std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms));
      }
      begin[i].record(*gpu.stream);
      graphs[i]->launch();
      end[i].record(*gpu.stream);
    }
  }
  double seconds(int i) const { return end[i].seconds_since(begin[i]); }
};

/// Medians: seconds of a replay of the first and of the second, and the first over the second in the same round.
struct Comparison {
  double seconds[2], ratio;
};

Comparison race_graphs(Gpu& gpu, device::CudaGraph* const (&graphs)[2], int pause_ms) {
  Round warm_up;
  for (int i = 0; i < 2; ++i) warm_up.replay(gpu, graphs, 0);
  const double estimate = warm_up.seconds(0) + warm_up.seconds(1);
  const int before = pause_ms > 0 ? 0 : static_cast<int>(kWarmUpSeconds / estimate);
  const int rounds =
      pause_ms > 0 ? kLeastRounds : std::clamp(static_cast<int>(kSeconds / estimate), kLeastRounds, kMostRounds);
  for (int i = 0; i < before; ++i) warm_up.replay(gpu, graphs, 0);
  std::vector<Round> all(static_cast<size_t>(rounds));
  for (Round& round : all) round.replay(gpu, graphs, pause_ms);
  std::vector<double> seconds[2], ratios;
  for (const Round& round : all) {
    for (int i = 0; i < 2; ++i) seconds[i].push_back(round.seconds(i));
    ratios.push_back(round.seconds(0) / round.seconds(1));
  }
  return {{median(seconds[0]), median(seconds[1])}, median(ratios)};
}

/// One shape, a comparison of 4-bit to dense products for each of `ms`. Both graphs hold as many products.
std::vector<Comparison> compare_shape(Gpu& gpu, int64_t rows, int64_t cols, int pause_ms,
                                      const std::vector<int64_t>& ms) {
  const FourBitWeights packed(gpu, rows, cols, true);
  const PlainWeights dense(gpu, rows, cols, DType::bf16);
  const int64_t calls = std::max(packed.copies(), dense.copies()), most = *std::max_element(ms.begin(), ms.end());
  const auto x = random_normal(gpu, DType::bf16, most * cols), y = gpu.stream->allocate(most * rows * 2);
  std::vector<Comparison> all;
  for (const int64_t m : ms) {
    const MatmulInput input{x.get(), m, cols, DType::bf16, false, DType::bf16};
    const auto first = capture_products(gpu, packed, calls, input, y.get());
    const auto second = capture_products(gpu, dense, calls, input, y.get());
    Comparison c = race_graphs(gpu, {first.get(), second.get()}, pause_ms);
    gpu.stream->check();
    for (double& seconds : c.seconds) seconds /= static_cast<double>(calls);
    all.push_back(c);
  }
  return all;
}

}  // namespace

void bench_against_dense(Gpu& gpu, int pause_ms, std::vector<int64_t> ms) {
  if (ms.empty()) ms = {1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096};
  const std::pair<int64_t, int64_t> shapes[] = {
      {4096, 4096}, {11008, 4096}, {12288, 4096}, {22016, 4096}, {4096, 11008}};
  std::string header = "| |", times, ratios;
  for (const int64_t m : ms) header += " " + std::to_string(m) + " |";
  header += "\n|---|";
  for (size_t i = 0; i < ms.size(); ++i) header += "---|";
  for (const auto& [rows, cols] : shapes) {
    const std::string name = "| " + std::to_string(rows) + " x " + std::to_string(cols) + " |";
    times += name;
    ratios += name;
    for (const Comparison& c : compare_shape(gpu, rows, cols, pause_ms, ms)) {
      char cell[64];
      std::snprintf(cell, sizeof cell, " %.1f, %.1f |", c.seconds[0] * 1e6, c.seconds[1] * 1e6);
      times += cell;
      std::snprintf(cell, sizeof cell, std::round(c.ratio * 100) > 110 ? " **%.2f** |" : " %.2f |", c.ratio);
      ratios += cell;
    }
    times += "\n";
    ratios += "\n";
  }
  std::printf("us of NF4 + double quantization, of bf16; medians\n\n%s\n%s\n", header.c_str(), times.c_str());
  std::printf("NF4 + double quantization over bf16, a median of rounds\n\n%s\n%s", header.c_str(), ratios.c_str());
}

}  // namespace nibble::bench
