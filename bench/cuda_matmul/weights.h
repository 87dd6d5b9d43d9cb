// Weights of the GPU matmul benchmarks, in copies that take turns so that none is found in the L2 cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "bench/cuda_gpu.h"

namespace nibble::bench {

inline constexpr int64_t kRotated =
    320 << 20;  // bytes of weights that a graph goes through: several times the L2 cache

template <typename T>
std::shared_ptr<void> upload(Gpu& gpu, const std::vector<T>& values) {
  auto memory = gpu.stream->allocate(static_cast<int64_t>(values.size() * sizeof(T)));
  gpu.stream->upload(memory.get(), values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
  return memory;
}

/// `count` values of a million random ones over and over; rows of a power of two elements still differ.
template <typename T, typename Convert>
std::shared_ptr<void> random_values(Gpu& gpu, int64_t count, float scale, const Convert& convert) {
  Random random(7);
  std::vector<T> values(static_cast<size_t>(std::min<int64_t>(count, (1 << 20) - 3)));
  for (T& value : values) value = convert(static_cast<float>(random.normal()) * scale);
  const auto period = static_cast<int64_t>(values.size());
  auto memory = gpu.stream->allocate(count * static_cast<int64_t>(sizeof(T)));
  for (int64_t i = 0; i < count; i += period)
    gpu.stream->upload(static_cast<T*>(memory.get()) + i, values.data(),
                       std::min(period, count - i) * static_cast<int64_t>(sizeof(T)));
  return memory;
}

inline std::shared_ptr<void> random_floats(Gpu& gpu, int64_t count, float scale) {
  return random_values<float>(gpu, count, scale, [](float x) { return x; });
}

/// `count` normal deviates of `dtype`, f32 or bf16.
inline std::shared_ptr<void> random_normal(Gpu& gpu, DType dtype, int64_t count) {
  if (dtype == DType::f32) return random_floats(gpu, count, 1);
  return random_values<bf16_t>(gpu, count, 1, [](float x) { return to_bf16(x); });
}

inline std::shared_ptr<void> random_bytes(Gpu& gpu, int64_t count) {
  Random random(8);
  std::vector<uint64_t> values(static_cast<size_t>(count / 8 + 1));
  for (uint64_t& value : values) value = random.next();
  auto memory = gpu.stream->allocate(count);
  gpu.stream->upload(memory.get(), values.data(), count);
  return memory;
}

/// NF4 in blocks of 64, absmax in fp32 or nested.
class FourBitWeights {
 public:
  FourBitWeights(Gpu& gpu, int64_t rows, int64_t cols, bool nested) : rows_(rows) {
    const int64_t blocks = rows * cols / kBlock, packed_bytes = rows * cols / 2;
    bytes_ = packed_bytes + (nested ? blocks : 4 * blocks);
    const auto codes = random_bytes(gpu, packed_bytes);
    const std::vector<float> absmax(static_cast<size_t>(blocks), 0.03f);
    for (int64_t i = 0; i < std::max<int64_t>(2, kRotated / packed_bytes + 1); ++i) {
      packed_.push_back(gpu.stream->allocate(packed_bytes));
      gpu.stream->copy(packed_.back().get(), codes.get(), packed_bytes);
      scales_.push_back(nested ? random_bytes(gpu, blocks) : upload(gpu, absmax));
    }
    if (!nested) return;
    groups_ = random_floats(gpu, blocks / 256 + 1, 0.01f);
    book_ = upload(gpu, std::vector<float>(quant::kDynamicSigned.begin(), quant::kDynamicSigned.end()));
  }

  int64_t copies() const { return static_cast<int64_t>(packed_.size()); }
  /// Of one copy.
  int64_t size_bytes() const { return bytes_; }

  void multiply(Gpu& gpu, int64_t call, const kernels::MatmulInput& input, void* y) const {
    const auto at = static_cast<size_t>(call % copies());
    kernels::Absmax a;
    if (groups_)
      a = {nullptr, static_cast<const uint8_t*>(scales_[at].get()), static_cast<const float*>(groups_.get()),
           static_cast<const float*>(book_.get()), 0.03f};
    else
      a.values = static_cast<const float*>(scales_[at].get());
    const kernels::Matmul4BitJob job{
        static_cast<const uint8_t*>(packed_[at].get()), a, kBlock, quant::kNf4.values.data(), rows_,
        {y, rows_, nullptr, false, input.x_dtype}};
    kernels::cuda::table()->matmul_4bit(gpu.context, input, &job, 1);
  }

 private:
  static constexpr int64_t kBlock = 64;
  int64_t rows_, bytes_;
  std::vector<std::shared_ptr<void>> packed_, scales_;
  std::shared_ptr<void> groups_, book_;
};

/// In bf16, or i8 with a scale for each row.
class PlainWeights {
 public:
  PlainWeights(Gpu& gpu, int64_t rows, int64_t cols, DType dtype)
      : rows_(rows), bytes_(rows * cols * size_of(dtype)), dtype_(dtype), absmax_(random_floats(gpu, rows, 0.1f)) {
    const auto bytes = dtype == DType::i8 ? random_bytes(gpu, bytes_) : random_normal(gpu, dtype, rows * cols);
    for (int64_t i = 0; i < std::max<int64_t>(2, kRotated / bytes_ + 1); ++i) {
      weights_.push_back(gpu.stream->allocate(bytes_));
      gpu.stream->copy(weights_.back().get(), bytes.get(), bytes_);
    }
  }

  int64_t copies() const { return static_cast<int64_t>(weights_.size()); }
  /// Of one copy.
  int64_t size_bytes() const { return bytes_; }

  void multiply(Gpu& gpu, int64_t call, const kernels::MatmulInput& input, void* y, float threshold = 0) const {
    const void* weight = weights_[static_cast<size_t>(call % copies())].get();
    const kernels::MatmulOutput out{y, rows_, nullptr, false, input.x_dtype};
    const auto& table = *kernels::cuda::table();
    if (dtype_ == DType::i8) {
      const kernels::MatmulInt8Job job{static_cast<const int8_t*>(weight), static_cast<const float*>(absmax_.get()),
                                       rows_, out};
      table.matmul_int8(gpu.context, input, threshold, &job, 1);
    } else {
      const kernels::MatmulDenseJob job{weight, dtype_, rows_, out};
      table.matmul_dense(gpu.context, input, &job, 1);
    }
  }

 private:
  int64_t rows_, bytes_;
  DType dtype_;
  std::shared_ptr<void> absmax_;
  std::vector<std::shared_ptr<void>> weights_;
};

/// `calls` products, each with another copy of the weights, to be replayed.
template <typename Weights>
std::unique_ptr<device::CudaGraph> capture_products(Gpu& gpu, const Weights& weights, int64_t calls,
                                                    const kernels::MatmulInput& input, void* y) {
  weights.multiply(gpu, 0, input, y);  // what a first call sets up
  gpu.stream->synchronize();
  return gpu.stream->capture([&] {
    for (int64_t i = 0; i < calls; ++i) weights.multiply(gpu, i, input, y);
  });
}

}  // namespace nibble::bench
