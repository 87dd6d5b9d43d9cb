// GPU matmul and quantization, timed as CUDA graphs over rotating weight copies, beside what memory and tensor cores
// allow. All rows, or those of `int8` or `quantize` alone, 4 bits against dense products (`dense`), or one shape.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "bench/cuda_gpu.h"

namespace nibble {
namespace {

using namespace kernels;
using bench::Gpu;

constexpr double kGigabytes = 1e9;
constexpr int64_t kRotated = 320 << 20;  // bytes of weights that a graph goes through: several times the L2 cache

template <typename T>
std::shared_ptr<void> upload(Gpu& gpu, const std::vector<T>& values) {
  auto memory = gpu.stream->allocate(static_cast<int64_t>(values.size() * sizeof(T)));
  gpu.stream->upload(memory.get(), values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
  return memory;
}

std::shared_ptr<void> random_floats(Gpu& gpu, int64_t count, float scale) {
  Random random(7);
  std::vector<float> values(static_cast<size_t>(std::min<int64_t>(count, 1 << 20)));
  for (float& value : values) value = static_cast<float>(random.normal()) * scale;
  auto memory = gpu.stream->allocate(count * 4);
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(values.size()))
    gpu.stream->upload(static_cast<float*>(memory.get()) + i, values.data(),
                       std::min<int64_t>(static_cast<int64_t>(values.size()), count - i) * 4);
  return memory;
}

std::shared_ptr<void> random_bytes(Gpu& gpu, int64_t count) {
  Random random(8);
  std::vector<uint64_t> values(static_cast<size_t>(count / 8 + 1));
  for (uint64_t& value : values) value = random.next();
  auto memory = gpu.stream->allocate(count);
  gpu.stream->upload(memory.get(), values.data(), count);
  return memory;
}

void print_row(Gpu& gpu, const char* what, int64_t rows, int64_t cols, int64_t m, double seconds, double bytes,
               double peak = 750e12) {
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(cols) * static_cast<double>(m);
  const double memory = bytes / gpu.bandwidth, compute = flops / peak;
  std::printf("%-14s %6lld x %5lld  m %5lld  %8.1f us  %6.0f GB/s  %6.1f TFLOP/s  limit %6.1f us (%s)\n", what,
              static_cast<long long>(rows), static_cast<long long>(cols), static_cast<long long>(m), seconds * 1e6,
              bytes / seconds / kGigabytes, flops / seconds * 1e-12, std::max(memory, compute) * 1e6,
              memory > compute ? "bytes" : "FLOPs");
}

/// `count` random activations of `dtype`.
std::shared_ptr<void> random_activations(Gpu& gpu, DType dtype, int64_t count) {
  if (dtype == DType::f32) return random_floats(gpu, count, 1);
  Random random(9);
  std::vector<bf16_t> values(static_cast<size_t>(count));
  for (bf16_t& value : values) value = to_bf16(static_cast<float>(random.normal()));
  return upload(gpu, values);
}

/// Seconds of each of `ms`.
std::vector<double> bench_matmul_4bit(Gpu& gpu, int64_t rows, int64_t cols, bool nested, const std::vector<int64_t>& ms,
                                      bool invariant, DType type = DType::bf16) {
  const int64_t block = 64, count = rows * cols, blocks = count / block, packed_bytes = count / 2;
  const int64_t copies = std::max<int64_t>(2, kRotated / packed_bytes + 1);
  std::vector<std::shared_ptr<void>> packed, scales;
  std::vector<double> all;
  const auto codes = random_bytes(gpu, packed_bytes);
  std::vector<float> absmax(static_cast<size_t>(blocks), 0.03f);
  for (int64_t i = 0; i < copies; ++i) {
    packed.push_back(gpu.stream->allocate(packed_bytes));
    gpu.stream->copy(packed.back().get(), codes.get(), packed_bytes);
    scales.push_back(nested ? random_bytes(gpu, blocks) : upload(gpu, absmax));
  }
  const auto groups = random_floats(gpu, blocks / 256 + 1, 0.01f);
  const auto book = upload(gpu, std::vector<float>(quant::kDynamicSigned.begin(), quant::kDynamicSigned.end()));
  for (const int64_t m : ms) {
    const auto x = random_activations(gpu, type, m * cols), y = gpu.stream->allocate(m * rows * 4);
    const MatmulInput input{x.get(), m, cols, DType::bf16, invariant, type};
    const double seconds = gpu.time([&] {
      for (int64_t i = 0; i < copies; ++i) {
        const auto at = static_cast<size_t>(i);
        Absmax a;
        if (nested)
          a = {nullptr, static_cast<const uint8_t*>(scales[at].get()), static_cast<const float*>(groups.get()),
               static_cast<const float*>(book.get()), 0.03f};
        else
          a.values = static_cast<const float*>(scales[at].get());
        const Matmul4BitJob job{
            static_cast<const uint8_t*>(packed[at].get()), a, block, quant::kNf4.values.data(), rows,
            {y.get(), rows, nullptr, false, type}};
        kernels::cuda::table()->matmul_4bit(gpu.context, input, &job, 1);
      }
    }) / static_cast<double>(copies);
    gpu.stream->check();
    const double bytes =
        static_cast<double>(packed_bytes + (nested ? blocks : 4 * blocks) + size_of(type) * m * (rows + cols));
    const std::string what = std::string(nested ? "nf4+dq" : "nf4") + (invariant ? " inv" : "");
    print_row(gpu, (what + (type == DType::f32 ? " f32" : "")).c_str(), rows, cols, m, seconds, bytes);
    all.push_back(seconds);
  }
  return all;
}

/// Seconds of each of `ms`.
std::vector<double> bench_matmul_plain(Gpu& gpu, int64_t rows, int64_t cols, DType dtype, float threshold,
                                       const std::vector<int64_t>& ms, DType type = DType::bf16) {
  const int64_t size = rows * cols * size_of(dtype), copies = std::max<int64_t>(2, kRotated / size + 1);
  std::vector<std::shared_ptr<void>> weights;
  std::vector<double> all;
  const auto bytes = dtype == DType::i8 ? random_bytes(gpu, size) : random_floats(gpu, size / 4, 0.05f);
  for (int64_t i = 0; i < copies; ++i) {
    weights.push_back(gpu.stream->allocate(size));
    gpu.stream->copy(weights.back().get(), bytes.get(), size);
  }
  const auto absmax = random_floats(gpu, rows, 0.1f);
  for (const int64_t m : ms) {
    const auto x = random_activations(gpu, type, m * cols), y = gpu.stream->allocate(m * rows * 4);
    const MatmulInput input{x.get(), m, cols, DType::bf16, false, type};
    const double seconds = gpu.time([&] {
      for (const auto& weight : weights) {
        const MatmulOutput out{y.get(), rows, nullptr, false, type};
        if (dtype == DType::i8) {
          const MatmulInt8Job job{static_cast<const int8_t*>(weight.get()), static_cast<const float*>(absmax.get()),
                                  rows, out};
          kernels::cuda::table()->matmul_int8(gpu.context, input, threshold, &job, 1);
        } else {
          const MatmulDenseJob job{weight.get(), dtype, rows, out};
          kernels::cuda::table()->matmul_dense(gpu.context, input, &job, 1);
        }
      }
    }) / static_cast<double>(copies);
    gpu.stream->check();
    const double peak = dtype == DType::i8 ? 1500e12 : 750e12;
    const std::string what = dtype == DType::i8 ? (threshold > 0 ? "int8 t" : "int8") : "bf16";
    print_row(gpu, (what + (type == DType::f32 ? " f32" : "")).c_str(), rows, cols, m, seconds,
              static_cast<double>(size + size_of(type) * m * (rows + cols)), peak);
    all.push_back(seconds);
  }
  return all;
}

/// A line for each number of rows of x: the median of three rounds in turn, as clocks fall under load.
void bench_against_dense(Gpu& gpu) {
  const std::vector<int64_t> ms{1, 4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096};
  const std::pair<int64_t, int64_t> shapes[] = {
      {4096, 4096}, {11008, 4096}, {12288, 4096}, {22016, 4096}, {4096, 11008}};
  for (const auto& [rows, cols] : shapes) {
    std::vector<double> ratios[3];
    for (auto& round : ratios) {
      round = bench_matmul_4bit(gpu, rows, cols, true, ms, false);
      const std::vector<double> dense = bench_matmul_plain(gpu, rows, cols, DType::bf16, 0, ms);
      for (size_t i = 0; i < ms.size(); ++i) round[i] /= dense[i];
    }
    std::printf("%lld x %lld, nf4+dq against bf16:", static_cast<long long>(rows), static_cast<long long>(cols));
    for (size_t i = 0; i < ms.size(); ++i) {
      double three[] = {ratios[0][i], ratios[1][i], ratios[2][i]};
      std::sort(three, three + 3);
      std::printf("  %lld: %.2f", static_cast<long long>(ms[i]), three[1]);
    }
    std::printf("\n");
  }
}

void bench_quantize(Gpu& gpu) {
  const int64_t count = int64_t{28672} * 8192, blocks = count / 64;
  const auto floats = random_floats(gpu, count / 2, 1);  // read as bf16 pairs: any bits but those of NaN do
  const auto packed = gpu.stream->allocate(count / 2), absmax = gpu.stream->allocate(blocks * 4);
  const auto out = gpu.stream->allocate(count * 2);
  const auto row = [&](const char* what, double seconds, int64_t bytes) {
    std::printf("%-24s %9.1f us  %6.0f GB/s  limit %.1f us\n", what, seconds * 1e6,
                static_cast<double>(bytes) / seconds / kGigabytes, static_cast<double>(bytes) / gpu.bandwidth * 1e6);
  };
  const auto& table = *kernels::cuda::table();
  const std::pair<const char*, const quant::CodeBook4Bit*> books[] = {{"nf4", &quant::kNf4}, {"fp4", &quant::kFp4}};
  for (const auto& [name, book] : books) {
    const double seconds = gpu.time([&] {
      table.quantize_4bit(gpu.context, {floats.get(), DType::bf16, count, 64, book, static_cast<uint8_t*>(packed.get()),
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
  const double seconds = gpu.time([&] {
    table.quantize_8bit(gpu.context, {floats.get(), DType::bf16, count, 256, quant::kDynamicSigned.data(),
                                      static_cast<uint8_t*>(codes.get()), static_cast<float*>(absmax.get())});
  });
  row("quantize 8-bit bf16", seconds, 3 * count + count / 64);
  const double back = gpu.time([&] {
    table.dequantize_8bit(
        gpu.context, {static_cast<const uint8_t*>(codes.get()), static_cast<const float*>(absmax.get()), count, 256,
                      quant::kDynamicSigned.data(), out.get(), DType::bf16});
  });
  row("dequantize 8-bit bf16", back, 3 * count + count / 64);
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
  Gpu gpu(int64_t{1} << 30);
  if (count == 4) {  // one shape, for a profiler: rows, cols, m
    gpu.bandwidth = 3e12;
    bench_matmul_4bit(gpu, std::atoll(arguments[1]), std::atoll(arguments[2]), true, {std::atoll(arguments[3])}, false);
    return 0;
  }
  if (count == 6 && std::string(arguments[1]) == "int8") {  // the same: rows, cols, m, threshold
    gpu.bandwidth = 3e12;
    bench_matmul_plain(gpu, std::atoll(arguments[2]), std::atoll(arguments[3]), DType::i8,
                       std::strtof(arguments[5], nullptr), {std::atoll(arguments[4])});
    return 0;
  }
  std::printf("%s\n", gpu.stream->description().name.c_str());
  gpu.measure_copy();
  if (count == 2) {
    const std::string what = arguments[1];
    what == "int8" ? bench_int8(gpu) : what == "dense" ? bench_against_dense(gpu) : bench_quantize(gpu);
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
