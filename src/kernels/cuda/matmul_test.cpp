// The matmul entries on the GPU against exact sums, in every shape that a kernel of its own takes, and their bits from
// run to run.
#include "kernels/cuda/weight_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

float round_to(DType dtype, float x) {
  if (dtype == DType::bf16) return to_float(to_bf16(x));
  if (dtype == DType::f16) return to_float(to_f16(x));
  return x;
}

std::vector<float> values_of(const Array& array) {
  std::vector<float> values;
  for (int64_t i = 0; i < array.count(); ++i) values.push_back(array.get(i));
  return values;
}

DType f32_or_bf16(Random& random) { return random.next() & 1 ? DType::f32 : DType::bf16; }

/// |y - exact| within the rounding of inputs to `compute` and of the sum to fp32, both as a random walk, and of y.
void expect_near_exact(const Array& x, const std::vector<float>& w, DType compute, const Shape& shape, const float* y,
                       int64_t y_stride, const float* bias, float before, const std::string& label,
                       DType y_dtype = DType::f32) {
  const double y_unit = y_dtype == DType::bf16 ? 0x1p-8 : 0;
  const double unit = compute == DType::f32 ? 0x1p-21 : compute == DType::f16 ? 0x1p-11 : 0x1p-8;
  std::vector<float> rounded = values_of(x);
  for (float& value : rounded) value = round_to(compute, value);
  struct Row {
    double worst = 0, error = 0, size = 0;
  };
  std::vector<Row> of_rows(static_cast<size_t>(shape.rows));  // of weights
  host_threads().parallel_for(shape.rows, [&](int64_t n, int) {
    Row& row = of_rows[static_cast<size_t>(n)];
    for (int64_t i = 0; i < shape.m; ++i) {
      const double start = (bias ? double{bias[n]} : 0.0) + double{before};
      double sum = 0, squares = 1e-12 + start * start;
      for (int64_t k = 0; k < shape.cols; ++k) {
        const double product = double{rounded[static_cast<size_t>(i * shape.cols + k)]} *
                               double{w[static_cast<size_t>(n * shape.cols + k)]};
        sum += product;
        squares += product * product;
      }
      const double exact = start + sum, difference = std::abs(double{y[i * y_stride + n]} - exact);
      row.worst =
          std::max(row.worst, difference / (unit * 24 * std::sqrt(squares) + (unit + y_unit) * std::abs(exact)));
      row.error += difference * difference;
      row.size += squares;
    }
  });
  double worst = 0, error = 0, size = 0;
  for (const Row& row : of_rows) {
    worst = std::max(worst, row.worst);
    error += row.error;
    size += row.size;
  }
  for (int64_t i = 0; i < shape.m; ++i)
    for (int64_t n = 0; n < shape.rows; ++n)
      ASSERT_FALSE(std::isnan(y[i * y_stride + n])) << label << " row " << i << " column " << n;
  EXPECT_LT(worst, 1.0) << label;
  EXPECT_LT(std::sqrt(error / size), (compute == DType::f32 ? 0x1p-17 : unit) + y_unit) << label;
}

constexpr float kPoison = 1.0e30f;

class MatmulGpuTest : public GpuTest {
 protected:
  Array outputs(const Shape& shape, int64_t stride, bool accumulate, int64_t offset = 1, DType dtype = DType::f32) {
    Array y(dtype, shape.m * stride, offset);
    host_threads().parallel_for(shape.m, [&](int64_t row, int) {
      for (int64_t i = 0; i < stride; ++i) y.set(row * stride + i, accumulate && i < shape.rows ? 2.5f : kPoison);
    });
    y.upload(stream());
    return y;
  }

  void check_4bit(Random& random, const Shape& shape, DType compute, bool nested, const quant::CodeBook4Bit& book,
                  int64_t offset, bool invariant) {
    const bool with_bias = random.next() & 1, accumulate = random.next() & 1;
    const DType x_dtype = f32_or_bf16(random), y_dtype = f32_or_bf16(random);
    const std::string label = "m " + std::to_string(shape.m) + " rows " + std::to_string(shape.rows) + " cols " +
                              std::to_string(shape.cols) + " block " + std::to_string(shape.block) + " " +
                              std::string(name_of(compute)) + (nested ? " nested" : "") +
                              (offset ? " misaligned" : "") + (invariant ? " invariant" : "") + " from " +
                              std::string(name_of(x_dtype)) + " to " + std::string(name_of(y_dtype));
    Weight4Bit w(random, shape, nested, book, offset);
    Array x = random_array(random, x_dtype, shape.m * shape.cols, 1, offset);
    x.upload(stream());
    const int64_t stride = random.next() & 1 ? shape.rows + 3 : (shape.rows + 15) / 8 * 8;
    std::vector<float> first;
    for (int run = 0; run < 2; ++run) {
      Array y = outputs(shape, stride, accumulate, offset, y_dtype);
      const auto job = w.job(stream(), y.device(stream()), stride, with_bias, accumulate, y_dtype);
      const MatmulInput input{x.device(stream()), shape.m, shape.cols, compute, invariant, x_dtype};
      cuda().matmul_4bit(context, input, &job, 1);
      finish(label);
      y.download(stream(), label);
      const std::vector<float> values = values_of(y);
      for (int64_t i = 0; i < shape.m; ++i)
        for (int64_t n = shape.rows; n < stride; ++n)
          ASSERT_EQ(values[static_cast<size_t>(i * stride + n)], round_to(y_dtype, kPoison)) << label;
      if (run == 0) {
        expect_near_exact(x, w.decoded, compute, shape, values.data(), stride,
                          with_bias ? w.bias.host<float>() : nullptr, accumulate ? 2.5f : 0.0f, label, y_dtype);
        first = values;
      } else {
        ASSERT_EQ(first, values) << label << ": other bits in the second run";
      }
    }
  }
};

TEST_F(MatmulGpuTest, FourBitAgreesForAnyShape) {
  Random random(1);
  const Shape shapes[] = {
      {1, 64, 576, 64},   {1, 67, 1536, 64},   {2, 33, 4096, 64},    {3, 7, 128, 32},    {1, 130, 32, 32},
      {5, 19, 100, 64},   {1, 9, 77, 32},      {1, 31, 33, 64},      {17, 40, 576, 64},  {300, 35, 192, 64},
      {4, 8, 4096, 4096}, {1, 5, 2048, 128},   {2, 3, 160, 32},      {40, 65, 1088, 64}, {1, 1, 1, 64},
      {13, 2, 8192, 256}, {6, 50, 640, 128},   {7, 11, 1600, 320},   {8, 300, 704, 64},  {16, 513, 1024, 64},
      {64, 300, 640, 32}, {100, 130, 576, 64}, {257, 129, 256, 128}, {9, 16, 11008, 64}, {12, 70, 4160, 64}};
  for (const Shape& shape : shapes)
    for (const DType compute : {DType::f32, DType::bf16, DType::f16})
      for (const bool nested : {false, true})
        check_4bit(random, shape, compute, nested, random.next() & 1 ? quant::kNf4 : quant::kFp4,
                   static_cast<int64_t>(random.next() % 4 == 0), random.next() & 1);
}

TEST_F(MatmulGpuTest, FourBitWithManyTilesAgrees) {
  Random random(2);
  for (const Shape& shape :
       {Shape{1, 2300, 1024, 64}, Shape{1, 11008, 256, 64}, Shape{4, 9001, 320, 64}, Shape{16, 3000, 1024, 64},
        Shape{70, 1500, 2048, 64}, Shape{290, 1000, 1024, 64}, Shape{1600, 221, 256, 64}, Shape{1540, 33, 512, 64},
        Shape{200, 1005, 1088, 64}, Shape{520, 700, 320, 64}, Shape{129, 300, 4096, 128}, Shape{250, 600, 704, 64}})
    for (int i = 0; i < 4; ++i) check_4bit(random, shape, DType::bf16, (shape.m + i) % 3 != 0, quant::kNf4, 0, false);
}

TEST_F(MatmulGpuTest, JobsOfOneCallShareX) {
  Random random(3);
  const int64_t cols = 576;
  for (const int64_t m : {1, 5, 20, 150}) {
    Weight4Bit a(random, {m, 37, cols, 64}, true, quant::kNf4, 0), b(random, {m, 300, cols, 64}, true, quant::kNf4, 0),
        c(random, {m, 5, cols, 64}, true, quant::kNf4, 0);
    Array x = random_array(random, DType::f32, m * cols);
    x.upload(stream());
    const int64_t stride = 37 + 300 + 5;
    Array y = outputs({m, stride, cols, 64}, stride, false);
    float* to = y.device<float>(stream());
    const Matmul4BitJob jobs[] = {a.job(stream(), to, stride, true, false),
                                  b.job(stream(), to + 37, stride, false, false),
                                  c.job(stream(), to + 337, stride, true, false),
                                  a.job(stream(), to, stride, true, false), a.job(stream(), to, stride, true, false)};
    cuda().matmul_4bit(context, {x.device<float>(stream()), m, cols, DType::bf16}, jobs, 5);
    finish("jobs");
    y.download(stream(), "jobs");
    const float* values = y.host<float>();
    expect_near_exact(x, a.decoded, DType::bf16, {m, 37, cols, 64}, values, stride, a.bias.host<float>(), 0,
                      "first job");
    expect_near_exact(x, b.decoded, DType::bf16, {m, 300, cols, 64}, values + 37, stride, nullptr, 0, "second job");
    expect_near_exact(x, c.decoded, DType::bf16, {m, 5, cols, 64}, values + 337, stride, c.bias.host<float>(), 0,
                      "third job");
  }
}

/// Small integers and quarters, which every kernel sums without an error: the same bits wherever tiles are cut.
TEST_F(MatmulGpuTest, JobsOfOneCallAreExactWhereverTheyMeet) {
  Random random(12);
  const quant::CodeBook4Bit book = exact_book();
  const int64_t stride = 1120;
  const auto check = [&](bool nested, int64_t cols, const std::vector<int64_t>& rows_of_x) {
    std::vector<Weight4Bit> weights;
    for (const int64_t rows : {300, 37, 523, 256}) {
      Weight4Bit& w = weights.emplace_back(random, Shape{1, rows, cols, 64}, nested, book, 0);
      w.make_exact(random);
    }
    for (const int64_t m : rows_of_x) {
      Array x = exact_activations(random, m * cols, stream());
      for (int kind = 0; kind<4; kind += m> 256 ? 3 : 1) {
        const DType y_dtype = kind % 2 ? DType::bf16 : DType::f32;
        const std::string label =
            "m " + std::to_string(m) + " kind " + std::to_string(kind) + (nested ? " nested" : "");
        Array y[2];
        for (const bool invariant : {true, false}) {
          y[invariant] = outputs({m, stride, cols, 64}, stride, kind / 2, 0, y_dtype);
          auto* to = static_cast<uint8_t*>(y[invariant].device(stream()));
          std::vector<Matmul4BitJob> jobs;
          for (Weight4Bit& w : weights) {
            jobs.push_back(w.job(stream(), to, stride, jobs.size() % 2 == 0, kind / 2, y_dtype));
            to += w.rows * size_of(y_dtype);
          }
          cuda().matmul_4bit(context, {x.device(stream()), m, cols, DType::bf16, invariant, DType::bf16}, jobs.data(),
                             4);
          finish(label);
          y[invariant].download(stream(), label);
        }
        expect_close(y[true], y[false], 0, label);
      }
    }
  };
  for (const bool nested : {false, true}) {
    check(nested, 704, {9, 16, 17, 33, 64, 65, 128, 129, 192, 200, 256, 257, 385, 512, 700, 1024, 1100, 1535});
    check(nested, 4672, {9, 16});
    check(nested, 11008, {14});
  }
}

class CutTilesGpuTest : public MatmulGpuTest {
 protected:
  /// One product for each of `ms` into bf16 and f32, against the kernel for few rows.
  void expect_exact(int64_t rows, int64_t cols, const std::vector<int64_t>& ms) {
    Random random(13);
    const quant::CodeBook4Bit book = exact_book();
    Weight4Bit w(random, Shape{1, rows, cols, 64}, true, book, 0);
    w.make_exact(random);
    for (const int64_t m : ms) {
      Array x = exact_activations(random, m * cols, stream());
      for (const DType y_dtype : {DType::bf16, DType::f32}) {
        const bool accumulate = m % 3 == 1;
        const std::string label = "m " + std::to_string(m) + " rows " + std::to_string(rows);
        Array y[2];
        for (const bool invariant : {true, false}) {
          y[invariant] = outputs({m, rows, cols, 64}, rows + 4, accumulate, 0, y_dtype);
          const Matmul4BitJob job =
              w.job(stream(), y[invariant].device(stream()), rows + 4, m % 2, accumulate, y_dtype);
          cuda().matmul_4bit(context, {x.device(stream()), m, cols, DType::bf16, invariant, DType::bf16}, &job, 1);
          finish(label);
          y[invariant].download(stream(), label);
        }
        expect_close(y[true], y[false], 0, label);
      }
    }
  }
};

/// Tiles of 64, 128, 192 and 256 rows of x in 8 and 4 pieces of equal depth, and whole ones.
TEST_F(CutTilesGpuTest, CutTilesAreExact) {
  expect_exact(200, 1088, {50, 100, 190, 250, 400});
  expect_exact(3900, 704, {64, 128, 192, 256, 500});
  expect_exact(16300, 192, {64, 100, 170, 256});
}

/// 8 and 4 pieces of up to 128 rows of x, small enough for tools that watch every access.
TEST_F(CutTilesGpuTest, SmallCutTilesAreExact) {
  expect_exact(130, 1024, {50, 100});
  expect_exact(2170, 512, {50, 100});
}

TEST_F(MatmulGpuTest, DenseAgreesForAnyShape) {
  Random random(4);
  const Shape shapes[] = {{1, 64, 576, 0},   {1, 67, 1537, 0},   {2, 33, 40, 0},      {3, 7, 129, 0},
                          {17, 40, 576, 0},  {300, 35, 190, 0},  {1, 1, 1, 0},        {9, 70, 2104, 0},
                          {8, 2300, 512, 0}, {70, 300, 1024, 0}, {130, 140, 1032, 0}, {290, 1500, 640, 0}};
  for (const Shape& shape : shapes)
    for (const DType compute : {DType::f32, DType::bf16, DType::f16})
      for (const DType dtype : kFloatTypes) {
        const int64_t offset = random.next() % 4 == 0;
        const bool invariant = random.next() & 1, with_bias = random.next() & 1, accumulate = random.next() & 1;
        const DType x_dtype = f32_or_bf16(random), y_dtype = f32_or_bf16(random);
        const std::string label = "m " + std::to_string(shape.m) + " rows " + std::to_string(shape.rows) + " cols " +
                                  std::to_string(shape.cols) + " " + std::string(name_of(dtype)) + " in " +
                                  std::string(name_of(compute)) + " from " + std::string(name_of(x_dtype)) + " to " +
                                  std::string(name_of(y_dtype)) + (offset ? " misaligned" : "");
        Array w = random_array(random, dtype, shape.rows * shape.cols, 0.05f, offset);
        Array x = random_array(random, x_dtype, shape.m * shape.cols, 1, offset);
        Array bias = random_array(random, DType::f32, shape.rows, 1, offset);
        for (Array* array : {&x, &w, &bias}) array->upload(stream());
        const std::vector<float> decoded = values_of(w);
        std::vector<float> first;
        for (int run = 0; run < 2; ++run) {
          Array y = outputs(shape, shape.rows, accumulate, offset, y_dtype);
          const float* device_bias = with_bias ? bias.device<float>(stream()) : nullptr;
          const MatmulDenseJob job{w.device(stream()),
                                   dtype,
                                   shape.rows,
                                   {y.device(stream()), shape.rows, device_bias, accumulate, y_dtype}};
          const MatmulInput input{x.device(stream()), shape.m, shape.cols, compute, invariant, x_dtype};
          cuda().matmul_dense(context, input, &job, 1);
          finish(label);
          y.download(stream(), label);
          const std::vector<float> values = values_of(y);
          if (run == 0) {
            expect_near_exact(x, decoded, compute, shape, values.data(), shape.rows,
                              with_bias ? bias.host<float>() : nullptr, accumulate ? 2.5f : 0.0f, label, y_dtype);
            first = values;
          } else {
            ASSERT_EQ(first, values) << label << ": other bits in the second run";
          }
        }
      }
}

TEST_F(MatmulGpuTest, Int8AgreesWithTheReference) {
  Random random(5);
  const Shape shapes[] = {{1, 64, 576, 0},   {1, 35, 1537, 0},   {3, 33, 48, 0},     {20, 7, 129, 0},
                          {300, 35, 80, 0},  {1, 1, 1, 0},       {9, 40, 4112, 0},   {100, 130, 1024, 0},
                          {8, 2200, 256, 0}, {257, 300, 512, 0}, {1, 70, 4096, 0},   {1, 20, 12304, 0},
                          {2, 40, 11008, 0}, {16, 600, 272, 0},  {130, 515, 384, 0}, {64, 9, 2048, 0}};
  for (const Shape& shape : shapes)
    for (const float threshold : {0.0f, 2.5f, 4.0f})
      for (const DType compute : {DType::bf16, DType::f16}) {
        const DType x_dtype = f32_or_bf16(random), y_dtype = f32_or_bf16(random);
        const int64_t x_offset = random.next() & 1, y_offset = random.next() & 1, stride = shape.rows + y_offset;
        const std::string label = "m " + std::to_string(shape.m) + " rows " + std::to_string(shape.rows) + " cols " +
                                  std::to_string(shape.cols) + " threshold " + std::to_string(threshold) + " from " +
                                  std::string(name_of(x_dtype)) + " to " + std::string(name_of(y_dtype));
        Array w(DType::i8, shape.rows * shape.cols, random.next() % 4 == 0), absmax(DType::f32, shape.rows);
        for (int64_t i = 0; i < w.count(); ++i)
          w.set(i, static_cast<float>(static_cast<int>(random.next() % 255) - 127));
        for (int64_t i = 0; i < shape.rows; ++i) absmax.set(i, static_cast<float>(0.1 + random.uniform()));
        Array bias = random_array(random, DType::f32, shape.rows);
        Array x = random_array(random, x_dtype, shape.m * shape.cols, 1, x_offset);
        if (shape.m > 2)
          for (int64_t c = 0; c < shape.cols; ++c) x.set(shape.cols + c, 0);
        for (Array* array : {&w, &absmax, &bias, &x}) array->upload(stream());
        const bool accumulate = random.next() & 1;
        std::vector<float> first;
        for (int run = 0; run < 2; ++run) {
          Array y = outputs(shape, stride, accumulate, y_offset, y_dtype);
          const MatmulInt8Job job{w.device<int8_t>(stream()),
                                  absmax.device<float>(stream()),
                                  shape.rows,
                                  {y.device(stream()), stride, bias.device<float>(stream()), accumulate, y_dtype}};
          const MatmulInput input{x.device(stream()), shape.m, shape.cols, compute, false, x_dtype};
          cuda().matmul_int8(context, input, threshold, &job, 1);
          finish(label);
          Array expected = y;
          const MatmulInt8Job on_host{w.host<int8_t>(),
                                      absmax.host<float>(),
                                      shape.rows,
                                      {expected.host(), stride, bias.host<float>(), accumulate, y_dtype}};
          if (run == 0)
            reference().matmul_int8(cpu, {x.host(), shape.m, shape.cols, compute, false, x_dtype}, threshold, &on_host,
                                    1);
          y.download(stream(), label);
          const std::vector<float> values = values_of(y);
          if (run == 0) {
            const double tolerance = y_dtype == DType::bf16 ? 0x1p-7 : 4e-6;
            double scale = 1;
            for (int64_t i = 0; i < expected.count(); ++i)
              if (i % stride < shape.rows) scale = std::max(scale, std::abs(double{expected.get(i)}));
            for (int64_t i = 0; i < expected.count(); ++i)
              ASSERT_NEAR(values[static_cast<size_t>(i)], expected.get(i), tolerance * scale) << label << " at " << i;
            first = values;
          } else {
            ASSERT_EQ(first, values) << label << ": other bits in the second run";
          }
        }
      }
}

/// Outliers in one column, in every other and in all; fp16 does not hold the largest.
TEST_F(MatmulGpuTest, Int8OutliersOfAnySizeAndNumberAgree) {
  using Case = std::pair<DType, float>;
  Random random(10);
  const int64_t rows = 136, cols = 400;
  Array w(DType::i8, rows * cols, 0), absmax(DType::f32, rows);
  for (int64_t i = 0; i < w.count(); ++i) w.set(i, static_cast<float>(static_cast<int>(random.next() % 255) - 127));
  for (int64_t i = 0; i < rows; ++i) absmax.set(i, static_cast<float>(0.1 + random.uniform()));
  for (Array* array : {&w, &absmax}) array->upload(stream());
  for (const int64_t m : {1, 5, 40, 300})
    for (const int64_t step : {cols, int64_t{2}, int64_t{1}})
      for (const auto& [type, large] : {Case{DType::f32, 1.0e5f}, Case{DType::bf16, 1.0e5f}, Case{DType::bf16, 9.0f}}) {
        const DType compute = type == DType::bf16 ? DType::bf16 : DType::f16;
        const std::string label = "m " + std::to_string(m) + " every " + std::to_string(step) + " columns, " +
                                  std::string(name_of(type)) + " " + std::to_string(large);
        Array x = random_array(random, type, m * cols, 1, 0);
        for (int64_t c = 3 % step; c < cols; c += step) x.set((m - 1) * cols + c, c % 4 ? large : -large * large);
        x.upload(stream());
        Array y = outputs({m, rows, cols, 0}, rows, false, 0);
        const MatmulInt8Job job{
            w.device<int8_t>(stream()), absmax.device<float>(stream()), rows, {y.device(stream()), rows}};
        cuda().matmul_int8(context, {x.device(stream()), m, cols, compute, false, type}, 6, &job, 1);
        finish(label);
        Array expected = y;
        const MatmulInt8Job on_host{w.host<int8_t>(), absmax.host<float>(), rows, {expected.host(), rows}};
        reference().matmul_int8(cpu, {x.host(), m, cols, compute, false, type}, 6, &on_host, 1);
        y.download(stream(), label);
        for (int64_t i = 0; i < m; ++i) {
          double scale = 1;
          for (int64_t n = 0; n < rows; ++n) scale = std::max(scale, std::abs(double{expected.get(i * rows + n)}));
          ASSERT_TRUE(std::isfinite(scale)) << label;
          for (int64_t n = 0; n < rows; ++n)
            ASSERT_NEAR(y.get(i * rows + n), expected.get(i * rows + n), 0x1p-7 * scale) << label << " row " << i;
        }
      }
}

TEST_F(MatmulGpuTest, Int8JobsOfOneCallShareTheOutlierColumns) {
  Random random(9);
  const int64_t cols = 320, sizes[] = {37, 300, 5, 130, 64}, stride = 536;
  Array w(DType::i8, stride * cols, 0), absmax = random_array(random, DType::f32, stride);
  for (int64_t i = 0; i < w.count(); ++i) w.set(i, static_cast<float>(static_cast<int>(random.next() % 255) - 127));
  for (const int64_t m : {1, 5, 20, 150})
    for (const float threshold : {0.0f, 2.0f, 3.5f}) {
      Array x = random_array(random, DType::f32, m * cols);
      for (Array* array : {&w, &absmax, &x}) array->upload(stream());
      const MatmulInput input{x.device(stream()), m, cols, DType::f16};
      Array together = outputs({m, stride, cols, 0}, stride, false),
            alone = outputs({m, stride, cols, 0}, stride, false);
      std::vector<MatmulInt8Job> jobs;
      int64_t first = 0;
      for (const int64_t rows : sizes) {
        jobs.push_back({w.device<int8_t>(stream()) + first * cols,
                        absmax.device<float>(stream()) + first,
                        rows,
                        {together.device<float>(stream()) + first, stride}});
        MatmulInt8Job job = jobs.back();
        job.out.y = alone.device<float>(stream()) + first;
        cuda().matmul_int8(context, input, threshold, &job, 1);
        first += rows;
      }
      cuda().matmul_int8(context, input, threshold, jobs.data(), static_cast<int64_t>(jobs.size()));
      finish("int8 jobs");
      together.download(stream(), "together");
      alone.download(stream(), "alone");
      ASSERT_EQ(values_of(together), values_of(alone)) << "m " << m << " threshold " << threshold;
    }
}

TEST_F(MatmulGpuTest, BatchInvariantModeGivesARowTheSameBitsForAnyM) {
  Random random(6);
  for (const int64_t cols : {576, 100}) {
    const int64_t rows = 50, most = 70;
    Weight4Bit w(random, {most, rows, cols, 64}, true, quant::kNf4, 0);
    Array dense = random_array(random, DType::bf16, rows * cols, 0.05f, 0), int8(DType::i8, rows * cols, 0);
    for (int64_t i = 0; i < int8.count(); ++i) int8.set(i, static_cast<float>(random.next() % 200) - 100);
    Array absmax = random_array(random, DType::f32, rows), x = random_array(random, DType::f32, most * cols);
    for (Array* array : {&dense, &int8, &absmax, &x}) array->upload(stream());
    std::vector<float> all;
    for (const int64_t m : {most, int64_t{1}, int64_t{2}, int64_t{7}, int64_t{8}, int64_t{33}}) {
      Array y(DType::f32, m * 3 * rows);
      float* to = y.device<float>(stream());
      MatmulInput input{x.device<float>(stream()), m, cols, DType::bf16};
      input.batch_invariant = true;
      const auto job = w.job(stream(), to, 3 * rows, true, false);
      cuda().matmul_4bit(context, input, &job, 1);
      const MatmulDenseJob dense_job{dense.device(stream()), DType::bf16, rows, {to + rows, 3 * rows}};
      cuda().matmul_dense(context, input, &dense_job, 1);
      const MatmulInt8Job int8_job{
          int8.device<int8_t>(stream()), absmax.device<float>(stream()), rows, {to + 2 * rows, 3 * rows}};
      cuda().matmul_int8(context, input, 2.0f, &int8_job, 1);
      finish("invariant");
      y.download(stream(), "invariant");
      if (m == most)
        all.assign(y.host<float>(), y.host<float>() + y.count());
      else
        ASSERT_TRUE(std::equal(y.host<float>(), y.host<float>() + y.count(), all.begin()))
            << "m " << m << " cols " << cols;
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
