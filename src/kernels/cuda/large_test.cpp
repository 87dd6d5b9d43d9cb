// A weight of more than 2^31 elements through quantize_4bit, dequantize_4bit and matmul_4bit: the same rows again and
// again, so that what lies beyond the 32-bit border must equal what lies before it.
#include "kernels/cuda/device_case.h"
#include "quant/format.h"

namespace nibble::kernels::cuda::testing {
namespace {

constexpr int64_t kCols = 4096;
constexpr int64_t kPeriodRows = 1024;
constexpr int64_t kPeriod = kPeriodRows * kCols;
constexpr int64_t kPeriods = 520;
constexpr int64_t kCount = kPeriods * kPeriod;
constexpr int64_t kBlock = 64;
static_assert(kCount > int64_t{1} << 31);

class LargeTest : public GpuTest {
 protected:
  std::shared_ptr<void> allocate(int64_t size_bytes) { return stream().allocate(size_bytes); }
  static std::byte* at(const std::shared_ptr<void>& memory, int64_t offset) {
    return static_cast<std::byte*>(memory.get()) + offset;
  }
  std::vector<uint8_t> piece(const std::shared_ptr<void>& memory, int64_t offset, int64_t size_bytes) {
    std::vector<uint8_t> bytes(static_cast<size_t>(size_bytes));
    stream().download(bytes.data(), at(memory, offset), size_bytes);
    return bytes;
  }
  /// The periods that hold the border and the end equal the first.
  void expect_periodic(const std::shared_ptr<void>& memory, int64_t period_bytes, const std::string& label) {
    const std::vector<uint8_t> first = piece(memory, 0, period_bytes);
    for (const int64_t period :
         {kPeriods / 2, (int64_t{1} << 31) / kPeriod - 1, (int64_t{1} << 31) / kPeriod, kPeriods - 1})
      EXPECT_TRUE(first == piece(memory, period * period_bytes, period_bytes)) << label << ", period " << period;
  }
};

TEST_F(LargeTest, FourBitWeightsBeyond32Bits) {
  if (stream().description().memory_bytes < int64_t{16} << 30) GTEST_SKIP() << "needs 16 GB of GPU memory";
  Random random(41);
  Array weight = random_array(random, DType::bf16, kPeriod, 1, 0);
  const auto source = allocate(2 * kCount);
  for (int64_t p = 0; p < kPeriods; ++p) stream().upload(at(source, p * 2 * kPeriod), weight.host(), 2 * kPeriod);
  const auto packed = allocate(kCount / 2), absmax = allocate(kCount / kBlock * 4);
  cuda().quantize_4bit(context, {source.get(), DType::bf16, kCount, kBlock, &quant::kNf4,
                                 static_cast<uint8_t*>(packed.get()), static_cast<float*>(absmax.get())});
  finish("quantize");
  expect_periodic(packed, kPeriod / 2, "packed");
  expect_periodic(absmax, kPeriod / kBlock * 4, "absmax");

  const Absmax view{.values = static_cast<const float*>(absmax.get())};
  cuda().dequantize_4bit(context, {static_cast<const uint8_t*>(packed.get()), view, kCount, kBlock,
                                   quant::kNf4.values.data(), source.get(), DType::bf16});
  finish("dequantize");
  expect_periodic(source, 2 * kPeriod, "dequantized");

  const std::vector<uint8_t> packed_head = piece(packed, 0, kPeriod / 2), values = piece(absmax, 0, kPeriod / 16);
  const Absmax head_view{.values = reinterpret_cast<const float*>(values.data())};
  constexpr int64_t kRows = kPeriods * kPeriodRows;
  for (const int64_t m : {1, 16, 72}) {
    Array x = random_array(random, DType::f32, m * kCols, 1, 0);
    x.upload(stream());
    const auto y = allocate(m * kRows * 4);
    const MatmulInput input{x.device(stream()), m, kCols, DType::bf16};
    const Matmul4BitJob job{
        static_cast<const uint8_t*>(packed.get()), view, kBlock, quant::kNf4.values.data(), kRows, {y.get(), kRows}};
    cuda().matmul_4bit(context, input, &job, 1);
    finish("matmul");
    std::vector<float> expected(static_cast<size_t>(m * kPeriodRows));
    const Matmul4BitJob head{packed_head.data(),        head_view,   kBlock,
                             quant::kNf4.values.data(), kPeriodRows, {expected.data(), kPeriodRows}};
    MatmulInput host = input;
    host.x = x.host();
    reference().matmul_4bit(cpu, host, &head, 1);
    // Sums of 4096 products of size 1; both sides of each are rounded to bf16.
    for (const int64_t row : {int64_t{0}, m - 1})
      for (const int64_t period : {int64_t{0}, (int64_t{1} << 31) / kPeriod, kPeriods - 1}) {
        const std::vector<uint8_t> found = piece(y, (row * kRows + period * kPeriodRows) * 4, kPeriodRows * 4);
        const auto* values_found = reinterpret_cast<const float*>(found.data());
        for (int64_t n = 0; n < kPeriodRows; ++n)
          ASSERT_NEAR(values_found[n], expected[static_cast<size_t>(row * kPeriodRows + n)], 1.0)
              << "m " << m << " row " << row << " period " << period << " column " << n;
      }
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
