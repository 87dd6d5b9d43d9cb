// The matmul entries of every instruction set against double-precision loops.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "kernels/cpu/table.h"

namespace nibble::kernels::cpu {
namespace {

constexpr float kPoison = 1.0e30f;

/// Values one element past an allocation's alignment.
template <typename T>
class Misaligned {
 public:
  explicit Misaligned(size_t count) : values_(count + 1) {}
  T* data() { return values_.data() + 1; }
  T& operator[](size_t i) { return values_[i + 1]; }

 private:
  std::vector<T> values_;
};

float round_to(DType dtype, float x) {
  if (dtype == DType::bf16) return to_float(to_bf16(x));
  if (dtype == DType::f16) return to_float(to_f16(x));
  return x;
}

/// One weight with its decoded values, and the job that names it.
struct Weight4Bit {
  int64_t rows, cols, block;
  bool nested;
  std::vector<uint8_t> packed, codes;
  std::vector<float> absmax, nested_absmax, decoded, bias;
  const quant::CodeBook4Bit* book;

  Weight4Bit(Random& random, int64_t rows_, int64_t cols_, int64_t block_, bool nested_, const quant::CodeBook4Bit& b)
      : rows(rows_), cols(cols_), block(block_), nested(nested_), book(&b) {
    const int64_t count = rows * cols, blocks = quant::block_count(count, block);
    packed.resize(static_cast<size_t>(quant::packed_size_bytes(count)));
    for (auto& byte : packed) byte = static_cast<uint8_t>(random.next());
    absmax.resize(static_cast<size_t>(blocks));
    codes.resize(static_cast<size_t>(blocks));
    nested_absmax.resize(static_cast<size_t>(quant::block_count(blocks, quant::kNestedBlock)));
    for (auto& value : nested_absmax) value = static_cast<float>(0.5 + random.uniform());
    for (int64_t i = 0; i < blocks; ++i) {
      absmax[i] = static_cast<float>(0.02 + 0.05 * random.uniform());
      codes[i] = static_cast<uint8_t>(random.next());
      if (nested) absmax[i] = quant::kDynamicSigned[codes[i]] * nested_absmax[i / quant::kNestedBlock] + kOffset;
    }
    for (int64_t i = 0; i < count; ++i)
      decoded.push_back(book->values[(packed[i / 2] >> (i % 2 ? 0 : 4)) & 15] * absmax[i / block]);
    for (int64_t i = 0; i < rows; ++i) bias.push_back(static_cast<float>(random.normal()));
  }

  Matmul4BitJob job(float* y, int64_t y_stride, bool with_bias, bool accumulate) const {
    Absmax a;
    if (nested) {
      a = {nullptr, codes.data(), nested_absmax.data(), quant::kDynamicSigned.data(), kOffset};
    } else {
      a.values = absmax.data();
    }
    return {packed.data(),       a,    block,
            book->values.data(), rows, {y, y_stride, with_bias ? bias.data() : nullptr, accumulate}};
  }

  static constexpr float kOffset = 0.75f;
};

std::vector<float> random_x(Random& random, int64_t count) {
  std::vector<float> x(static_cast<size_t>(count));
  for (auto& value : x) value = static_cast<float>(random.normal());
  return x;
}

/// |y - exact| within the rounding of inputs to `compute` and of the sum to fp32, both as a random walk.
void expect_close(const std::vector<float>& x, const std::vector<float>& w, DType compute, int64_t m, int64_t rows,
                  int64_t cols, const float* y, int64_t y_stride, const float* bias, float before,
                  const std::string& label) {
  const double unit = compute == DType::bf16 ? 0x1p-8 : 0x1p-23;
  double worst = 0, error = 0, size = 0;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t n = 0; n < rows; ++n) {
      const double start = (bias ? bias[n] : 0.0) + before;
      double sum = 0, squares = 1e-12 + start * start;
      for (int64_t k = 0; k < cols; ++k) {
        const double product = double{round_to(compute, x[i * cols + k])} * w[n * cols + k];
        sum += product;
        squares += product * product;
      }
      const double exact = start + sum;
      const double difference = std::abs(y[i * y_stride + n] - exact);
      worst = std::max(worst, difference / (unit * (24 * std::sqrt(squares) + std::abs(exact))));
      error += difference * difference;
      size += squares;
    }
  EXPECT_LT(worst, 1.0) << label;
  EXPECT_LT(std::sqrt(error / size), compute == DType::bf16 ? 0x1p-8 : 0x1p-19) << label;
}

struct Shape {
  int64_t m, rows, cols, block;
};

class MatmulTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (!isa().is_supported) GTEST_SKIP() << isa().name;
  }
  static const Isa& isa_at(int index) { return isas()[static_cast<size_t>(index)]; }
  const Isa& isa() const { return isa_at(GetParam()); }
  const Kernels& kernels() const { return *isa().table; }
};

TEST_P(MatmulTest, FourBitAgreesWithDoubleForAnyShape) {
  Random random(1);
  ThreadPool pool(2);
  const Shape shapes[] = {{1, 64, 576, 64},  {1, 67, 1536, 64},  {2, 33, 4096, 64},  {3, 7, 128, 32},
                          {1, 130, 32, 32},  {5, 19, 100, 64},   {1, 9, 77, 32},     {1, 31, 33, 64},
                          {17, 40, 576, 64}, {300, 35, 192, 64}, {4, 8, 4096, 4096}, {1, 5, 2048, 128},
                          {2, 3, 160, 32},   {40, 65, 1088, 64}, {1, 1, 1, 64},      {13, 2, 8192, 256},
                          {6, 50, 640, 128}, {7, 11, 1600, 320}};
  for (const auto& shape : shapes)
    for (const DType compute : {DType::f32, DType::bf16, DType::f16})
      for (const bool nested : {false, true})
        for (const auto* book : {&quant::kNf4, &quant::kFp4}) {
          const bool with_bias = random.next() & 1, accumulate = random.next() & 1;
          const Weight4Bit w(random, shape.rows, shape.cols, shape.block, nested, *book);
          const auto x = random_x(random, shape.m * shape.cols);
          const int64_t stride = shape.rows + 3;
          const float before = accumulate ? 2.5f : 0.0f;
          std::vector<float> y(static_cast<size_t>(shape.m * stride), kPoison);
          for (int64_t i = 0; accumulate && i < shape.m; ++i)
            for (int64_t n = 0; n < shape.rows; ++n) y[i * stride + n] = before;
          const auto job = w.job(y.data(), stride, with_bias, accumulate);
          kernels().matmul_4bit({&pool}, {x.data(), shape.m, shape.cols, compute}, &job, 1);
          std::string label = std::string(isa().name) + " m " + std::to_string(shape.m) + " rows " +
                              std::to_string(shape.rows) + " cols " + std::to_string(shape.cols) + " block " +
                              std::to_string(shape.block) + " " + std::string(name_of(compute)) +
                              (nested ? " nested" : "");
          expect_close(x, w.decoded, compute, shape.m, shape.rows, shape.cols, y.data(), stride,
                       with_bias ? w.bias.data() : nullptr, before, label);
          for (int64_t i = 0; i < shape.m; ++i)
            for (int64_t n = shape.rows; n < stride; ++n) ASSERT_EQ(y[i * stride + n], kPoison) << label;
        }
}

TEST_P(MatmulTest, DenseAgreesWithDoubleForAnyShape) {
  Random random(2);
  ThreadPool pool(2);
  const Shape shapes[] = {{1, 64, 576, 0},  {1, 67, 1537, 0},  {2, 33, 40, 0}, {3, 7, 129, 0},
                          {17, 40, 576, 0}, {300, 35, 190, 0}, {1, 1, 1, 0},   {9, 70, 2100, 0}};
  for (const auto& shape : shapes)
    for (const DType compute : {DType::f32, DType::bf16, DType::f16})
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        const auto count = static_cast<size_t>(shape.rows * shape.cols);
        Misaligned<float> w32(count);
        Misaligned<uint16_t> w16(count);
        std::vector<float> decoded(count);
        for (size_t i = 0; i < count; ++i) {
          const auto value = static_cast<float>(0.05 * random.normal());
          decoded[i] = round_to(dtype, value);
          w32[i] = value;
          w16[i] = dtype == DType::bf16 ? to_bf16(value).bits : to_f16(value).bits;
        }
        const auto x = random_x(random, shape.m * shape.cols);
        std::vector<float> y(static_cast<size_t>(shape.m * shape.rows), kPoison);
        const MatmulDenseJob job{dtype == DType::f32 ? static_cast<const void*>(w32.data()) : w16.data(),
                                 dtype,
                                 shape.rows,
                                 {y.data(), shape.rows}};
        kernels().matmul_dense({&pool}, {x.data(), shape.m, shape.cols, compute}, &job, 1);
        expect_close(x, decoded, compute, shape.m, shape.rows, shape.cols, y.data(), shape.rows, nullptr, 0,
                     std::string(isa().name) + " " + std::string(name_of(dtype)) + " in " +
                         std::string(name_of(compute)) + " cols " + std::to_string(shape.cols));
      }
}

/// What LLM.int8() is defined to give, in double after the integer parts.
std::vector<double> int8_reference(const std::vector<float>& x, const int8_t* w, const std::vector<float>& absmax,
                                   int64_t m, int64_t rows, int64_t cols, float threshold, DType compute,
                                   bool per_row) {
  std::vector<float> x16(x.size());
  std::vector<bool> outlier(x.size()), column(static_cast<size_t>(cols));
  for (size_t i = 0; i < x.size(); ++i) {
    x16[i] = to_float(to_f16(x[i]));
    outlier[i] = threshold > 0 && std::abs(x16[i]) >= threshold;
    if (outlier[i]) column[i % static_cast<size_t>(cols)] = true;
  }
  std::vector<double> y;
  for (int64_t i = 0; i < m; ++i) {
    float row_max = 0;
    for (int64_t k = 0; k < cols; ++k)
      if (!outlier[i * cols + k]) row_max = std::max(row_max, std::abs(x16[i * cols + k]));
    for (int64_t n = 0; n < rows; ++n) {
      int64_t sum = 0;
      double apart = 0;
      for (int64_t k = 0; k < cols; ++k) {
        const int64_t at = i * cols + k;
        if (per_row ? outlier[at] : column[k])
          apart += double{round_to(compute, x[at])} *
                   round_to(compute, static_cast<float>(w[n * cols + k]) * absmax[n] * (1.0f / 127.0f));
        else if (row_max > 0)
          sum += int64_t{w[n * cols + k]} * static_cast<int64_t>(std::nearbyint(x16[at] * (127.0f * (1.0f / row_max))));
      }
      y.push_back(static_cast<double>(sum) * row_max * absmax[n] / (127.0 * 127.0) + apart);
    }
  }
  return y;
}

TEST_P(MatmulTest, Int8AgreesWithItsDefinition) {
  Random random(3);
  ThreadPool pool(2);
  const Shape shapes[] = {{1, 64, 576, 0},  {1, 35, 1537, 0}, {3, 33, 40, 0},   {20, 7, 129, 0},
                          {300, 35, 70, 0}, {1, 1, 1, 0},     {9, 40, 4100, 0}, {600, 3, 20, 0}};
  for (const auto& shape : shapes)
    for (const float threshold : {0.0f, 2.5f})
      for (const bool invariant : {false, true}) {
        const DType compute = random.next() & 1 ? DType::bf16 : DType::f16;
        Misaligned<int8_t> w(static_cast<size_t>(shape.rows * shape.cols));
        for (int64_t i = 0; i < shape.rows * shape.cols; ++i) w[i] = static_cast<int8_t>(random.next());
        std::vector<float> absmax(static_cast<size_t>(shape.rows));
        for (auto& value : absmax) value = static_cast<float>(0.1 + random.uniform());
        auto x = random_x(random, shape.m * shape.cols);
        if (shape.m > 2) std::fill_n(x.begin() + shape.cols, shape.cols, 0.0f);
        std::vector<float> y(static_cast<size_t>(shape.m * shape.rows), kPoison);
        const MatmulInt8Job job{w.data(), absmax.data(), shape.rows, {y.data(), shape.rows}};
        MatmulInput input{x.data(), shape.m, shape.cols, compute};
        input.batch_invariant = invariant;
        kernels().matmul_int8({&pool}, input, threshold, &job, 1);
        const auto exact =
            int8_reference(x, w.data(), absmax, shape.m, shape.rows, shape.cols, threshold, compute, invariant);
        double scale = 0;
        for (const double value : exact) scale = std::max(scale, std::abs(value));
        for (size_t i = 0; i < exact.size(); ++i)
          ASSERT_NEAR(y[i], exact[i], 3e-6 * scale)
              << isa().name << " cols " << shape.cols << " threshold " << threshold;
      }
}

/// Runs the three entries on three jobs that share x; returns every output bit.
std::vector<float> run_all(const Kernels& kernels, ThreadPool* pool, const std::vector<float>& x, int64_t m,
                           int64_t cols, DType compute, bool invariant) {
  Random random(11);
  const Weight4Bit a(random, 37, cols, 64, false, quant::kNf4), b(random, 5, cols, 64, true, quant::kNf4);
  std::vector<uint16_t> dense(static_cast<size_t>(41 * cols));
  for (auto& value : dense) value = to_bf16(static_cast<float>(random.normal())).bits;
  std::vector<int8_t> int8(static_cast<size_t>(50 * cols));
  for (auto& value : int8) value = static_cast<int8_t>(random.next());
  const std::vector<float> absmax(50, 0.7f);
  const int64_t stride = 37 + 5 + 41 + 50;
  std::vector<float> y(static_cast<size_t>(m * stride), kPoison);
  MatmulInput input{x.data(), m, cols, compute};
  input.batch_invariant = invariant;
  const Matmul4BitJob jobs[] = {a.job(y.data(), stride, true, false), b.job(y.data() + 37, stride, false, false)};
  kernels.matmul_4bit({pool}, input, jobs, 2);
  const MatmulDenseJob dense_job{dense.data(), DType::bf16, 41, {y.data() + 42, stride}};
  kernels.matmul_dense({pool}, input, &dense_job, 1);
  const MatmulInt8Job int8_job{int8.data(), absmax.data(), 50, {y.data() + 83, stride}};
  kernels.matmul_int8({pool}, input, invariant ? 3.0f : 0.0f, &int8_job, 1);
  return y;
}

TEST_P(MatmulTest, ThreadsDoNotChangeBits) {
  Random random(4);
  ThreadPool two(2), three(3);
  for (const int64_t m : {1, 3, 9, 70})
    for (const int64_t cols : {576, 100})
      for (const DType compute : {DType::f32, DType::bf16}) {
        const auto x = random_x(random, m * cols);
        const auto one = run_all(kernels(), nullptr, x, m, cols, compute, false);
        for (ThreadPool* pool : {&two, &three})
          EXPECT_EQ(one, run_all(kernels(), pool, x, m, cols, compute, false)) << isa().name << " m " << m;
      }
}

TEST_P(MatmulTest, OtherRowsDoNotChangeBits) {
  Random random(5);
  for (const int64_t m : {2, 5, 16, 31})
    for (const DType compute : {DType::f32, DType::bf16}) {
      auto x = random_x(random, m * 576);
      const auto before = run_all(kernels(), nullptr, x, m, 576, compute, false);
      for (int64_t i = 0; i < (m - 1) * 576; ++i) x[i] = static_cast<float>(10 * random.normal());
      const auto after = run_all(kernels(), nullptr, x, m, 576, compute, false);
      const auto row = static_cast<std::ptrdiff_t>(before.size()) / m;
      EXPECT_TRUE(std::equal(before.end() - row, before.end(), after.end() - row)) << isa().name << " m " << m;
    }
}

TEST_P(MatmulTest, BatchInvariantModeGivesARowTheSameBitsForAnyM) {
  Random random(6);
  for (const int64_t cols : {576, 100})
    for (const DType compute : {DType::f32, DType::bf16, DType::f16}) {
      const auto x = random_x(random, 70 * cols);
      const auto all = run_all(kernels(), nullptr, x, 70, cols, compute, true);
      const size_t row = all.size() / 70;
      for (const int64_t m : {1, 2, 7, 8, 16, 33}) {
        const auto some = run_all(kernels(), nullptr, x, m, cols, compute, true);
        EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << isa().name << " m " << m;
        EXPECT_EQ(some.size(), row * static_cast<size_t>(m));
      }
    }
}

INSTANTIATE_TEST_SUITE_P(Isas, MatmulTest, testing::Range(0, static_cast<int>(isas().size())),
                         [](const auto& info) { return std::string(isas()[static_cast<size_t>(info.param)].name); });

}  // namespace
}  // namespace nibble::kernels::cpu
