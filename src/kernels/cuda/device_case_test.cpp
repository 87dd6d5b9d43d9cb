// Poisoned buffers, comparisons and the GPU of the kernel tests.
#include "kernels/cuda/device_case.h"

#include "base/error.h"

namespace nibble::kernels::cuda::testing {

void Array::set(int64_t i, float value) {
  switch (dtype_) {
    case DType::bf16:
      host<bf16_t>()[i] = to_bf16(value);
      break;
    case DType::f16:
      host<f16_t>()[i] = to_f16(value);
      break;
    case DType::f32:
      host<float>()[i] = value;
      break;
    case DType::i32:
      host<int32_t>()[i] = static_cast<int32_t>(value);
      break;
    case DType::i8:
      host<int8_t>()[i] = static_cast<int8_t>(value);
      break;
    default:
      host<uint8_t>()[i] = static_cast<uint8_t>(value);
  }
}

float Array::get(int64_t i) const {
  const auto at = [&](auto type) { return reinterpret_cast<const decltype(type)*>(host_.data())[i]; };
  switch (dtype_) {
    case DType::bf16:
      return to_float(at(bf16_t{}));
    case DType::f16:
      return to_float(at(f16_t{}));
    case DType::f32:
      return at(float{});
    case DType::i32:
      return static_cast<float>(at(int32_t{}));
    case DType::i8:
      return at(int8_t{});
    default:
      return at(uint8_t{});
  }
}

void* Array::device(device::CudaStream& stream) {
  if (!device_) {
    device_ = stream.allocate(whole());
    const std::vector<uint8_t> poison(static_cast<size_t>(whole()), kPoison);
    stream.upload(device_.get(), poison.data(), whole());
  }
  return static_cast<std::byte*>(device_.get()) + begin();
}

void Array::upload(device::CudaStream& stream) {
  void* to = device(stream);
  stream.upload(to, host_.data(), static_cast<int64_t>(host_.size()));
}

void Array::download(device::CudaStream& stream, const std::string& label) {
  device(stream);
  std::vector<uint8_t> all(static_cast<size_t>(whole()));
  stream.download(all.data(), device_.get(), whole());
  std::memcpy(host_.data(), all.data() + begin(), host_.size());
  const int64_t end = begin() + static_cast<int64_t>(host_.size());
  for (int64_t i = 0; i < whole(); ++i) {
    if (i < begin() || i >= end) {
      ASSERT_EQ(all[static_cast<size_t>(i)], kPoison) << label << ": wrote outside an array";
    }
  }
}

ThreadPool& host_threads() {
  static ThreadPool pool;
  return pool;
}

Array random_array(Random& random, DType dtype, int64_t count, float scale, int64_t offset) {
  Array array(dtype, count, offset);
  constexpr int64_t kPiece = 1 << 14;
  std::vector<Random> pieces;  // each with numbers of its own, so that threads can make them
  for (int64_t i = 0; i < count; i += kPiece) pieces.emplace_back(random.next());
  host_threads().parallel_for(static_cast<int64_t>(pieces.size()), [&](int64_t p, int) {
    Random& own = pieces[static_cast<size_t>(p)];
    for (int64_t i = p * kPiece; i < std::min(count, (p + 1) * kPiece); ++i)
      array.set(i, static_cast<float>(own.normal()) * scale);
  });
  return array;
}

namespace {

bool is_close(float a, float b, double tolerance) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (tolerance == 0 || std::isinf(a) || std::isinf(b)) return a == b && std::signbit(a) == std::signbit(b);
  return std::abs(double{a} - double{b}) <= tolerance * std::max(1.0, std::abs(double{a}));
}

}  // namespace

void expect_close(const Array& expected, const Array& found, double tolerance, const std::string& label) {
  ASSERT_EQ(expected.count(), found.count());
  constexpr int64_t kPiece = 1 << 15;
  const int64_t pieces = (expected.count() + kPiece - 1) / kPiece;
  std::vector<int64_t> bad(static_cast<size_t>(pieces), -1);  // the first of each piece
  host_threads().parallel_for(pieces, [&](int64_t p, int) {
    for (int64_t i = p * kPiece; i < std::min(expected.count(), (p + 1) * kPiece); ++i)
      if (!is_close(expected.get(i), found.get(i), tolerance)) {
        bad[static_cast<size_t>(p)] = i;
        return;
      }
  });
  for (const int64_t i : bad)
    ASSERT_LT(i, 0) << label << ": [" << i << "] is " << found.get(i) << ", expected " << expected.get(i);
}

double largest(const Array& array) {
  double size = 1;
  for (int64_t i = 0; i < array.count(); ++i) size = std::max(size, std::abs(double{array.get(i)}));
  return size;
}

void expect_within(const Array& expected, const Array& found, double tolerance, double relative,
                   const std::string& label) {
  ASSERT_EQ(expected.count(), found.count());
  for (int64_t i = 0; i < expected.count(); ++i)
    ASSERT_NEAR(found.get(i), expected.get(i), tolerance + relative * std::abs(double{expected.get(i)}))
        << label << " at " << i;
}

/// Grows; poisons nothing, so that what a kernel leaves there is found by the next.
class GpuTest::TestScratch final : public Scratch {
 public:
  explicit TestScratch(device::CudaStream& stream) : stream_(stream) {}
  void* reserve(int64_t size_bytes) override {
    if (size_bytes > size_bytes_) {
      memory_.reset();
      memory_ = stream_.allocate(size_bytes);
      size_bytes_ = size_bytes;
    }
    return memory_.get();
  }

 private:
  device::CudaStream& stream_;
  std::shared_ptr<void> memory_;
  int64_t size_bytes_ = 0;
};

void GpuTest::SetUp() {
  if (!table()) GTEST_SKIP() << "this program was built without CUDA";
  const device::CudaSupport support = device::describe_cuda();
  if (!support.missing.empty()) GTEST_SKIP() << support.missing;
  stream_ = device::open_cuda(0);
  scratch_ = std::make_unique<TestScratch>(*stream_);
  counters_ = stream_->allocate(kCounters * 4);
  stream_->fill_zero(counters_.get(), kCounters * 4);
  context.stream = stream_->handle();
  context.scratch = scratch_.get();
  context.counters = static_cast<uint32_t*>(counters_.get());
  context.capability = usable_capability(stream_->description().capability);
  context.multiprocessors = stream_->description().multiprocessors;
  cpu.pool = &host_threads();
}

void GpuTest::TearDown() {
  if (!stream_) return;
  std::vector<uint32_t> counters(kCounters, 1);
  stream_->download(counters.data(), counters_.get(), kCounters * 4);
  for (const uint32_t counter : counters) ASSERT_EQ(counter, 0u) << "an entry left a counter behind";
}

void GpuTest::finish(const std::string& label) {
  try {
    stream_->check();
    stream_->synchronize();
  } catch (const Error& error) {
    FAIL() << label << ": " << error.what();
  }
}

}  // namespace nibble::kernels::cuda::testing
