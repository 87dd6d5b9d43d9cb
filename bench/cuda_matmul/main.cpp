// GPU matmul and quantization, timed as CUDA graphs over rotating weight copies, beside what memory and tensor cores
// allow. All rows, or those of `int8` or `quantize` alone, or one shape; `dense [PAUSE_MS [M...]]`: 4 bits against
// dense products in turn, after pauses for a cool GPU; `energy`: what both cost.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bench/cuda_matmul/against_dense.h"
#include "bench/cuda_matmul/energy.h"
#include "bench/cuda_matmul/weights.h"

namespace nibble {
namespace {

using namespace kernels;
using namespace bench;

constexpr double kGigabytes = 1e9;
void print_row(Gpu& gpu, const char* what, int64_t rows, int64_t cols, int64_t m, double seconds, double bytes,
               double peak = 750e12) {
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(cols) * static_cast<double>(m);
  const double memory = bytes / gpu.bandwidth, compute = flops / peak;
  std::printf("%-14s %6lld x %5lld  m %5lld  %8.1f us  %6.0f GB/s  %6.1f TFLOP/s  limit %6.1f us (%s)\n", what,
              static_cast<long long>(rows), static_cast<long long>(cols), static_cast<long long>(m), seconds * 1e6,
              bytes / seconds / kGigabytes, flops / seconds * 1e-12, std::max(memory, compute) * 1e6,
              memory > compute ? "bytes" : "FLOPs");
}

void bench_matmul_4bit(Gpu& gpu, int64_t rows, int64_t cols, bool nested, const std::vector<int64_t>& ms,
                       bool invariant, DType type = DType::bf16) {
  const FourBitWeights weights(gpu, rows, cols, nested);
  for (const int64_t m : ms) {
    const auto x = random_normal(gpu, type, m * cols), y = gpu.stream->allocate(m * rows * 4);
    const MatmulInput input{x.get(), m, cols, DType::bf16, invariant, type};
    const double seconds = gpu.time([&] {
      for (int64_t i = 0; i < weights.copies(); ++i) weights.multiply(gpu, i, input, y.get());
    }) / static_cast<double>(weights.copies());
    gpu.stream->check();
    const std::string what = std::string(nested ? "nf4+dq" : "nf4") + (invariant ? " inv" : "");
    print_row(gpu, (what + (type == DType::f32 ? " f32" : "")).c_str(), rows, cols, m, seconds,
              static_cast<double>(weights.size_bytes() + size_of(type) * m * (rows + cols)));
  }
}

void bench_matmul_plain(Gpu& gpu, int64_t rows, int64_t cols, DType dtype, float threshold,
                        const std::vector<int64_t>& ms, DType type = DType::bf16) {
  const PlainWeights weights(gpu, rows, cols, dtype);
  for (const int64_t m : ms) {
    const auto x = random_normal(gpu, type, m * cols), y = gpu.stream->allocate(m * rows * 4);
    const MatmulInput input{x.get(), m, cols, DType::bf16, false, type};
    const double seconds = gpu.time([&] {
      for (int64_t i = 0; i < weights.copies(); ++i) weights.multiply(gpu, i, input, y.get(), threshold);
    }) / static_cast<double>(weights.copies());
    gpu.stream->check();
    const double peak = dtype == DType::i8 ? 1500e12 : 750e12;
    const std::string what = dtype == DType::i8 ? (threshold > 0 ? "int8 t" : "int8") : "bf16";
    print_row(gpu, (what + (type == DType::f32 ? " f32" : "")).c_str(), rows, cols, m, seconds,
              static_cast<double>(weights.size_bytes() + size_of(type) * m * (rows + cols)), peak);
  }
}

void bench_quantize(Gpu& gpu) {
  const int64_t count = int64_t{28672} * 8192, blocks = count / 64;
  const auto x = random_normal(gpu, DType::bf16, count);
  const auto packed = gpu.stream->allocate(count / 2), absmax = gpu.stream->allocate(blocks * 4);
  const auto out = gpu.stream->allocate(count * 2);
  const auto row = [&](const char* what, double seconds, int64_t bytes) {
    std::printf("%-28s %9.1f us  %6.0f GB/s  limit %.1f us\n", what, seconds * 1e6,
                static_cast<double>(bytes) / seconds / kGigabytes, static_cast<double>(bytes) / gpu.bandwidth * 1e6);
  };
  const auto& table = *kernels::cuda::table();
  const std::pair<const char*, const quant::CodeBook4Bit*> books[] = {{"nf4", &quant::kNf4}, {"fp4", &quant::kFp4}};
  for (const auto& [name, book] : books) {
    const double seconds = gpu.time([&] {
      table.quantize_4bit(gpu.context, {x.get(), DType::bf16, count, 64, book, static_cast<uint8_t*>(packed.get()),
                                        static_cast<float*>(absmax.get())});
    });
    row((std::string("quantize ") + name + " bf16").c_str(), seconds, 2 * count + count / 2 + 4 * blocks);
    const Absmax a{.values = static_cast<const float*>(absmax.get())};
    const double back = gpu.time([&] {
      table.dequantize_4bit(gpu.context, {static_cast<const uint8_t*>(packed.get()), a, count, 64, book->values.data(),
                                          out.get(), DType::bf16});
    });
    row((std::string("dequantize ") + name + " bf16").c_str(), back, 2 * count + count / 2 + 4 * blocks);
  }
  const auto codes = gpu.stream->allocate(count);
  for (const int64_t block : {256, 4096}) {
    const double seconds = gpu.time([&] {
      table.quantize_8bit(gpu.context, {x.get(), DType::bf16, count, block, quant::kDynamicSigned.data(),
                                        static_cast<uint8_t*>(codes.get()), static_cast<float*>(absmax.get())});
    });
    const int64_t bytes = 3 * count + 4 * count / block;
    row(("quantize 8-bit bf16, " + std::to_string(block)).c_str(), seconds, bytes);
    const double back = gpu.time([&] {
      table.dequantize_8bit(
          gpu.context, {static_cast<const uint8_t*>(codes.get()), static_cast<const float*>(absmax.get()), count, block,
                        quant::kDynamicSigned.data(), out.get(), DType::bf16});
    });
    row(("dequantize 8-bit bf16, " + std::to_string(block)).c_str(), back, bytes);
  }
}

void bench_int8(Gpu& gpu) {
  bench_matmul_plain(gpu, 11008, 4096, DType::i8, 0, {1, 4, 8, 16, 64, 128, 256, 512, 1024, 2048, 4096});
  // Outliers in none, about 8 and about 730 of the columns of 2048 rows.
  for (const float threshold : {6.0f, 4.9f, 3.9f})
    bench_matmul_plain(gpu, 11008, 4096, DType::i8, threshold, {1, 16, 2048});
  bench_matmul_plain(gpu, 12288, 4096, DType::i8, 6, {1, 2048});
  bench_matmul_plain(gpu, 4096, 4096, DType::i8, 6, {1, 2048});
  bench_matmul_plain(gpu, 22016, 4096, DType::i8, 6, {1, 2048});
  bench_matmul_plain(gpu, 4096, 11008, DType::i8, 6, {1, 4, 16, 2048});
  bench_matmul_plain(gpu, 4096, 11008, DType::i8, 2.9f, {1, 2048});  // 40 columns; all
}

int run(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string what = count > 1 ? arguments[1] : "";
  if (count == 2 && what != "int8" && what != "quantize" && what != "dense" && what != "energy") {
    std::fprintf(stderr, "error: found %s, expected int8, quantize, dense, energy or ROWS COLS M\n", what.c_str());
    return 2;
  }
  Gpu gpu(int64_t{1} << 30);
  if (what == "dense") {
    std::vector<int64_t> ms;
    for (int i = 3; i < count; ++i) ms.push_back(std::atoll(arguments[i]));
    bench_against_dense(gpu, count > 2 ? std::atoi(arguments[2]) : 0, ms);
    return 0;
  }
  if (what == "energy") {
    bench_energy(gpu);
    return 0;
  }
  if (count == 4) {  // one shape, for a profiler: rows, cols, m
    gpu.bandwidth = 3e12;
    bench_matmul_4bit(gpu, std::atoll(arguments[1]), std::atoll(arguments[2]), true, {std::atoll(arguments[3])}, false);
    return 0;
  }
  if (count == 6 && what == "int8") {  // the same: rows, cols, m, threshold
    gpu.bandwidth = 3e12;
    bench_matmul_plain(gpu, std::atoll(arguments[2]), std::atoll(arguments[3]), DType::i8,
                       std::strtof(arguments[5], nullptr), {std::atoll(arguments[4])});
    return 0;
  }
  std::printf("%s\n", gpu.stream->description().name.c_str());
  gpu.measure_copy();
  if (count == 2) {
    what == "int8" ? bench_int8(gpu) : bench_quantize(gpu);
    return 0;
  }
  bench_quantize(gpu);
  bench_matmul_4bit(gpu, 11008, 4096, false, {1, 2, 4, 8, 16, 64, 128, 256, 512, 2048}, false);
  bench_matmul_4bit(gpu, 11008, 4096, true, {1, 4, 8, 9, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096}, false);
  bench_matmul_4bit(gpu, 11008, 4096, true, {16, 64, 256, 512, 2048}, false, DType::f32);
  bench_matmul_4bit(gpu, 11008, 4096, true, {1, 16, 64}, true);
  bench_matmul_4bit(gpu, 4096, 4096, true, {1, 4, 16, 64, 512, 2048}, false);
  bench_matmul_4bit(gpu, 4096, 11008, true, {1, 4, 16, 64, 512, 2048}, false);
  bench_matmul_4bit(gpu, 12288, 4096, true, {1, 16}, false);
  bench_matmul_4bit(gpu, 22016, 4096, true, {1, 16, 512, 2048}, false);
  bench_matmul_4bit(gpu, 28672, 8192, true, {1, 16, 64}, false);
  bench_matmul_plain(gpu, 11008, 4096, DType::bf16, 0, {1, 4, 8, 16, 64, 128, 256, 512, 2048});
  bench_matmul_plain(gpu, 11008, 4096, DType::bf16, 0, {16, 512, 2048}, DType::f32);
  bench_matmul_plain(gpu, 32000, 4096, DType::bf16, 0, {1, 16});
  bench_int8(gpu);
  gpu.stream->synchronize();
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int count, char** arguments) { return nibble::run(count, arguments); }
