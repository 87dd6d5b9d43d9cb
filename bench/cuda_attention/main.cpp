// GPU attention of one new token a sequence, timed as CUDA graphs over the caches of many layers, beside what memory
// allows.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "bench/cuda_gpu.h"

namespace nibble {
namespace {

using namespace kernels;
using bench::Gpu;

constexpr int64_t kRotated = 320 << 20;  // bytes of caches that a graph goes through: several times the L2 cache

std::shared_ptr<void> random_values(Gpu& gpu, int64_t count, DType dtype) {
  Random random(9);
  std::vector<bf16_t> values(static_cast<size_t>(count));
  for (bf16_t& value : values) value = to_bf16(static_cast<float>(random.normal()));
  if (dtype == DType::i8)
    for (bf16_t& value : values) value = std::bit_cast<bf16_t>(static_cast<uint16_t>(random.next()));
  auto memory = gpu.stream->allocate(count * 2);
  gpu.stream->upload(memory.get(), values.data(), count * 2);
  return memory;
}

struct Shape {
  int64_t heads, kv_heads, dim, batch, past;
  DType kv_dtype;
};

/// The caches of one layer, of all sequences.
struct Cache {
  std::shared_ptr<void> k, v, k_scales, v_scales;
};

struct Layers {
  std::vector<Cache> caches;
  int64_t capacity, sequence_bytes, bytes_read;

  Layers(Gpu& gpu, const Shape& s) : capacity(s.past + 16) {
    const int64_t row = s.dim * size_of(s.kv_dtype), scale = s.kv_dtype == DType::i8 ? 4 : 0;
    sequence_bytes = s.kv_heads * capacity * row;
    bytes_read = 2 * s.batch * s.kv_heads * s.past * (row + scale);
    const int64_t size = s.batch * sequence_bytes, scales = s.batch * s.kv_heads * capacity;
    const auto values = random_values(gpu, std::min<int64_t>(size / 2, 1 << 22), s.kv_dtype);
    const std::vector<float> ones(static_cast<size_t>(scales), 0.01f);
    const auto fill = [&] {
      auto memory = gpu.stream->allocate(size);
      for (int64_t at = 0; at < size; at += int64_t{1} << 23)
        gpu.stream->copy(static_cast<char*>(memory.get()) + at, values.get(),
                         std::min<int64_t>(size - at, std::min<int64_t>(size, int64_t{1} << 23)));
      return memory;
    };
    for (int64_t i = 0; i < std::max<int64_t>(2, kRotated / (2 * size) + 1); ++i) {
      Cache cache{fill(), fill(), gpu.stream->allocate(scales * 4), gpu.stream->allocate(scales * 4)};
      for (const auto& to : {cache.k_scales, cache.v_scales}) gpu.stream->upload(to.get(), ones.data(), scales * 4);
      caches.push_back(cache);
    }
  }
};

void* at(const std::shared_ptr<void>& memory, int64_t bytes) { return static_cast<char*>(memory.get()) + bytes; }

void time_shape(Gpu& gpu, const Shape& s) {
  const Layers layers(gpu, s);
  const int64_t width = (s.heads + 2 * s.kv_heads) * s.dim;
  const auto qkv = random_values(gpu, s.batch * width, DType::bf16);
  const auto out = gpu.stream->allocate(s.batch * s.heads * s.dim * 2);
  const auto angles = gpu.stream->allocate(s.batch * s.dim * 4);
  gpu.stream->fill_zero(angles.get(), s.batch * s.dim * 4);
  bool is_fused = false;
  const double seconds = gpu.time([&] {
    for (const Cache& cache : layers.caches) {
      std::vector<AttentionSequence> sequences;
      for (int64_t b = 0; b < s.batch; ++b) {
        AttentionSequence sequence{at(qkv, b * width * 2),
                                   at(cache.k, b * layers.sequence_bytes),
                                   at(cache.v, b * layers.sequence_bytes),
                                   layers.capacity,
                                   1,
                                   s.past,
                                   at(out, b * s.heads * s.dim * 2)};
        if (s.kv_dtype == DType::i8) {
          sequence.k_scales = static_cast<float*>(at(cache.k_scales, b * s.kv_heads * layers.capacity * 4));
          sequence.v_scales = static_cast<float*>(at(cache.v_scales, b * s.kv_heads * layers.capacity * 4));
        }
        sequences.push_back(sequence);
      }
      const auto* floats = static_cast<const float*>(angles.get());
      const RotateAppendArgs rotation{.q = qkv.get(),
                                      .k = at(qkv, s.heads * s.dim * 2),
                                      .v = at(qkv, (s.heads + s.kv_heads) * s.dim * 2),
                                      .q_stride = width,
                                      .k_stride = width,
                                      .v_stride = width,
                                      .cos = floats,
                                      .sin = floats,
                                      .rotary_dim = s.dim,
                                      .interleaved = false,
                                      .heads = s.heads,
                                      .kv_heads = s.kv_heads,
                                      .head_dim = s.dim,
                                      .sequences = sequences.data(),
                                      .sequence_count = s.batch,
                                      .kv_dtype = s.kv_dtype,
                                      .x_dtype = DType::bf16};
      const AttentionArgs args{.sequences = sequences.data(),
                               .sequence_count = s.batch,
                               .heads = s.heads,
                               .kv_heads = s.kv_heads,
                               .head_dim = s.dim,
                               .q_stride = width,
                               .kv_dtype = s.kv_dtype,
                               .scale = 0.1f,
                               .q_dtype = DType::bf16};
      is_fused = kernels::cuda::table()->rotate_attention(gpu.context, rotation, args);
      if (is_fused) continue;
      kernels::cuda::table()->rotate_append(gpu.context, rotation);
      kernels::cuda::table()->attention(gpu.context, args);
    }
  }) / static_cast<double>(layers.caches.size());
  gpu.stream->check();
  const auto bytes = static_cast<double>(layers.bytes_read);
  std::printf(
      "%-4s heads %2lld/%-2lld dim %3lld  batch %2lld  past %5lld  %8.2f us  %5.0f GB/s  %3.0f %% of a copy%s\n",
      std::string(name_of(s.kv_dtype)).c_str(), static_cast<long long>(s.heads), static_cast<long long>(s.kv_heads),
      static_cast<long long>(s.dim), static_cast<long long>(s.batch), static_cast<long long>(s.past), seconds * 1e6,
      bytes / seconds * 1e-9, 100 * bytes / seconds / gpu.bandwidth, is_fused ? "" : "  (two launches)");
}

int run(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  Gpu gpu(int64_t{1} << 28);
  if (count == 7) {  // one shape, for a profiler: heads, kv heads, dim, batch, keys before, type
    gpu.bandwidth = 3e12;
    const auto number = [&](int i) { return std::atoll(arguments[i]); };
    time_shape(gpu, {number(1), number(2), number(3), number(4), number(5),
                     std::string(arguments[6]) == "int8" ? DType::i8 : DType::bf16});
    return 0;
  }
  std::printf("%s\n", gpu.stream->description().name.c_str());
  gpu.measure_copy();
  for (const DType dtype : {DType::bf16, DType::i8}) {
    for (const int64_t past : {64, 512, 2048, 4096, 16384}) time_shape(gpu, {32, 32, 128, 1, past, dtype});
    for (const int64_t batch : {4, 16})
      for (const int64_t past : {512, 2048}) time_shape(gpu, {32, 32, 128, batch, past, dtype});
    for (const auto& [heads, kv_heads, dim] : {std::tuple{32, 8, 128}, {64, 8, 128}, {32, 8, 64}})
      for (const int64_t batch : {1, 16})
        for (const int64_t past : {512, 2048}) time_shape(gpu, {heads, kv_heads, dim, batch, past, dtype});
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int count, char** arguments) { return nibble::run(count, arguments); }
