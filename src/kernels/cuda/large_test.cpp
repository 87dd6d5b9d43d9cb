// Arrays of more than 2^31 elements through quantizers, products and norms: the same rows again and again, so that what
// lies beyond the 32-bit border must equal what lies before it.
#include "kernels/cuda/device_case.h"
#include "quant/format.h"

namespace nibble::kernels::cuda::testing {
namespace {

constexpr int64_t kCols = 4096;
constexpr int64_t kPeriodRows = 1024;
constexpr int64_t kPeriod = kPeriodRows * kCols;
constexpr int64_t kPeriods = 520;
constexpr int64_t kCount = kPeriods * kPeriod;
constexpr int64_t kRows = kPeriods * kPeriodRows;
constexpr int64_t kBlock = 64;
static_assert(kCount > int64_t{1} << 31);

class LargeTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    if (stream().description().memory_bytes < int64_t{16} << 30) GTEST_SKIP() << "needs 16 GB of GPU memory";
    weight = random_array(random, DType::bf16, kPeriod, 1, 0);
    source = allocate(2 * kCount);
    for (int64_t p = 0; p < kPeriods; ++p) stream().upload(at(source, p * 2 * kPeriod), weight.host(), 2 * kPeriod);
  }
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
  /// x by the whole weight (`multiply`) against the reference's product by the first period (`expect`), in the first
  /// and the last row of x. Sums of 4096 products of size 1.
  template <typename Multiply, typename Expect>
  void expect_products(int64_t m, double tolerance, const Multiply& multiply, const Expect& expect) {
    Array x = random_array(random, DType::f32, m * kCols, 1, 0), two(DType::f32, 2 * kCols, 0);
    std::copy_n(x.host<float>(), kCols, two.host<float>());
    std::copy_n(x.host<float>() + (m - 1) * kCols, kCols, two.host<float>() + kCols);
    x.upload(stream());
    const auto y = allocate(m * kRows * 4);
    multiply({x.device(stream()), m, kCols, DType::bf16}, {y.get(), kRows});
    finish("product");
    std::vector<float> expected(static_cast<size_t>(2 * kPeriodRows));
    expect({two.host(), 2, kCols, DType::bf16}, {expected.data(), kPeriodRows});
    for (const int64_t row : {0, 1})
      for (const int64_t period : {int64_t{0}, (int64_t{1} << 31) / kPeriod, kPeriods - 1}) {
        const int64_t begin = row * (m - 1) * kRows + period * kPeriodRows;
        const std::vector<uint8_t> found = piece(y, begin * 4, kPeriodRows * 4);
        const auto* values = reinterpret_cast<const float*>(found.data());
        for (int64_t n = 0; n < kPeriodRows; ++n)
          ASSERT_NEAR(values[n], expected[static_cast<size_t>(row * kPeriodRows + n)], tolerance)
              << "m " << m << " row " << row << " period " << period << " column " << n;
      }
  }

  Random random{41};
  Array weight;                  // a period, in bf16
  std::shared_ptr<void> source;  // all periods
};

TEST_F(LargeTest, FourBitWeightsBeyond32Bits) {
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
  const auto multiply = [&](const MatmulInput& input, const MatmulOutput& out) {
    const Matmul4BitJob job{
        static_cast<const uint8_t*>(packed.get()), view, kBlock, quant::kNf4.values.data(), kRows, out};
    cuda().matmul_4bit(context, input, &job, 1);
  };
  const auto expect = [&](const MatmulInput& input, const MatmulOutput& out) {
    const Matmul4BitJob job{packed_head.data(), head_view, kBlock, quant::kNf4.values.data(), kPeriodRows, out};
    reference().matmul_4bit(cpu, input, &job, 1);
  };
  for (const int64_t m : {1, 16, 72, 200, 1600}) expect_products(m, 1.0, multiply, expect);  // both round to bf16
}

TEST_F(LargeTest, EightBitBlocksBeyond32Bits) {
  const auto codes = allocate(kCount), absmax = allocate(kCount / 256 * 4);
  cuda().quantize_8bit(context, {source.get(), DType::bf16, kCount, 256, quant::kDynamicSigned.data(),
                                 static_cast<uint8_t*>(codes.get()), static_cast<float*>(absmax.get())});
  finish("quantize");
  expect_periodic(codes, kPeriod, "codes");
  expect_periodic(absmax, kPeriod / 256 * 4, "absmax");
  cuda().dequantize_8bit(context, {static_cast<const uint8_t*>(codes.get()), static_cast<const float*>(absmax.get()),
                                   kCount, 256, quant::kDynamicSigned.data(), source.get(), DType::bf16});
  finish("dequantize");
  expect_periodic(source, 2 * kPeriod, "dequantized");
}

TEST_F(LargeTest, Int8WeightsBeyond32Bits) {
  const auto codes = allocate(kCount), absmax = allocate(kRows * 4);
  cuda().quantize_int8_rows(context, {source.get(), DType::bf16, kRows, kCols, 0, static_cast<int8_t*>(codes.get()),
                                      static_cast<float*>(absmax.get()), nullptr});
  finish("quantize");
  expect_periodic(codes, kPeriod, "codes");
  expect_periodic(absmax, kPeriodRows * 4, "absmax");

  const std::vector<uint8_t> head = piece(codes, 0, kPeriod), scales = piece(absmax, 0, kPeriodRows * 4);
  const auto multiply = [&](const MatmulInput& input, const MatmulOutput& out) {
    const MatmulInt8Job job{static_cast<const int8_t*>(codes.get()), static_cast<const float*>(absmax.get()), kRows,
                            out};
    cuda().matmul_int8(context, input, 0, &job, 1);
  };
  const auto expect = [&](const MatmulInput& input, const MatmulOutput& out) {
    const MatmulInt8Job job{reinterpret_cast<const int8_t*>(head.data()), reinterpret_cast<const float*>(scales.data()),
                            kPeriodRows, out};
    reference().matmul_int8(cpu, input, 0, &job, 1);
  };
  for (const int64_t m : {1, 16, 200}) expect_products(m, 0.01, multiply, expect);
}

TEST_F(LargeTest, DenseWeightsBeyond32Bits) {
  const auto multiply = [&](const MatmulInput& input, const MatmulOutput& out) {
    const MatmulDenseJob job{source.get(), DType::bf16, kRows, out};
    cuda().matmul_dense(context, input, &job, 1);
  };
  const auto expect = [&](const MatmulInput& input, const MatmulOutput& out) {
    const MatmulDenseJob job{weight.host(), DType::bf16, kPeriodRows, out};
    reference().matmul_dense(cpu, input, &job, 1);
  };
  for (const int64_t m : {1, 4, 16, 200}) expect_products(m, 1.0, multiply, expect);
}

/// The same rows from its end as from its beginning.
TEST_F(LargeTest, EmbeddingsBeyond32Bits) {
  constexpr int64_t kTokens = 64;
  Array ids(DType::i32, 2 * kTokens, 0), rows(DType::f32, 2 * kTokens * kCols, 0);
  for (int64_t i = 0; i < kTokens; ++i) {
    ids.host<int32_t>()[i] = static_cast<int32_t>(i * 15);
    ids.host<int32_t>()[kTokens + i] = static_cast<int32_t>((kPeriods - 1) * kPeriodRows + i * 15);
  }
  ids.upload(stream());
  cuda().embed(context, {source.get(), DType::bf16, ids.device<int32_t>(stream()), 2 * kTokens, kCols, 1,
                         rows.device(stream())});
  finish("embed");
  rows.download(stream(), "embed");
  for (int64_t i = 0; i < kTokens * kCols; ++i) {
    ASSERT_EQ(rows.get(i), weight.get(i / kCols * 15 * kCols + i % kCols)) << i;
    ASSERT_EQ(rows.get(kTokens * kCols + i), rows.get(i)) << i;
  }
}

TEST_F(LargeTest, ActivationsBeyond32Bits) {
  const auto out = allocate(2 * kCount);
  Array scale = random_array(random, DType::f32, kCols, 1, 0);
  scale.upload(stream());
  RmsNormArgs norm{};
  norm.x = source.get();
  norm.weight = scale.device<float>(stream());
  norm.rows = kRows;
  norm.cols = kCols;
  norm.eps = 1e-5f;
  norm.out = out.get();
  norm.x_dtype = norm.out_dtype = DType::bf16;
  cuda().rms_norm(context, norm);
  finish("norm");
  expect_periodic(out, 2 * kPeriod, "norm");
  ActivateArgs activate{};
  activate.gate = source.get();
  activate.up = at(source, kCols);  // the second half of each row
  activate.stride = kCols;
  activate.rows = kRows;
  activate.cols = kCols / 2;
  activate.activation = Activation::silu;
  activate.out = out.get();
  activate.x_dtype = activate.out_dtype = DType::bf16;
  cuda().activate(context, activate);
  finish("activate");
  expect_periodic(out, kPeriod, "activate");
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
