// matmul_int8_fused against a norm, a product and an activation of their own.
#include <array>

#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

struct Shape {
  int64_t m, rows, cols;
};

/// Two weights, gate and up, with what stands around their products.
struct Problem {
  Problem(Random& random, const Shape& shape)
      : rows(shape.rows),
        cols(shape.cols),
        w(DType::i8, 2 * rows * cols, 0),
        absmax(DType::f32, 2 * rows),
        bias(random_array(random, DType::f32, 2 * rows)),
        x(random_array(random, DType::f32, shape.m * cols, 1, 0)),
        norm(random_array(random, DType::f32, cols, 1, 0)) {
    for (int64_t i = 0; i < w.count(); ++i) w.set(i, static_cast<float>(static_cast<int>(random.next() % 255) - 127));
    for (int64_t i = 0; i < 2 * rows; ++i) absmax.set(i, static_cast<float>(0.02 + 0.1 * random.uniform()));
  }

  void upload(device::CudaStream& stream) {
    for (Array* array : {&w, &absmax, &bias, &x, &norm}) array->upload(stream);
  }
  std::array<MatmulInt8Job, 2> jobs(device::CudaStream& stream, Array& y) {
    const auto job = [&](int64_t j) {
      return MatmulInt8Job{w.device<int8_t>(stream) + j * rows * cols,
                           absmax.device<float>(stream) + j * rows,
                           rows,
                           {y.device<float>(stream) + j * rows, 2 * rows, bias.device<float>(stream)}};
    };
    return {job(0), job(1)};
  }

  int64_t rows, cols;
  Array w, absmax, bias, x, norm;
};

class MatmulInt8FusedTest : public GpuTest {
 protected:
  void agree(Random& random, const Shape& shape, bool with_norm, bool is_gated, float threshold);
};

void MatmulInt8FusedTest::agree(Random& random, const Shape& shape, bool with_norm, bool is_gated, float threshold) {
  const auto& [m, rows, cols] = shape;
  const std::string label = "m " + std::to_string(m) + " rows " + std::to_string(rows) + " cols " +
                            std::to_string(cols) + (with_norm ? " norm" : "") + (is_gated ? " gated" : "") +
                            " threshold " + std::to_string(threshold);
  Problem problem(random, shape);
  problem.upload(stream());
  Array normed(DType::f32, m * cols, 0), parts(DType::f32, m * 2 * rows), fused(DType::f32, m * 2 * rows);
  Array expected(DType::f32, m * rows), gated(DType::f32, m * rows);
  const float* x = problem.x.device<float>(stream());
  FusedInt8Args args{.input = {x, m, cols, DType::f16}, .eps = 1e-5f, .weight_offset = 1, .threshold = threshold};
  const auto separate = problem.jobs(stream(), parts), together = problem.jobs(stream(), fused);
  if (with_norm) {
    args.norm_weight = problem.norm.device<float>(stream());
    cuda().rms_norm(context, {x, args.norm_weight, m, cols, 1e-5f, 1, normed.device<float>(stream())});
    x = normed.device<float>(stream());
  }
  cuda().matmul_int8(context, {x, m, cols, DType::f16}, threshold, separate.data(), 2);
  args.jobs = together.data();
  args.count = 2;
  args.is_gated = is_gated;
  args.gated_out = {gated.device<float>(stream()), rows};
  const bool is_taken = cuda().matmul_int8_fused(context, args);
  ASSERT_EQ(is_taken, !with_norm || m == 1) << label;
  if (!is_taken) return;
  if (is_gated)
    cuda().activate(context, {parts.device<float>(stream()), parts.device<float>(stream()) + rows, 2 * rows, m, rows,
                              Activation::silu, expected.device<float>(stream())});
  finish(label);
  for (Array* array : {&parts, &expected, &fused, &gated}) array->download(stream(), label);
  // A norm summed in another order may make another code of an element.
  const double scale = largest(parts);
  expect_within(is_gated ? expected : parts, is_gated ? gated : fused,
                (with_norm ? 5e-3 : 1e-6) * scale * (is_gated ? scale : 1), 0, label);
}

TEST_F(MatmulInt8FusedTest, ProductsAgreeWithTheirParts) {
  Random random(11);
  for (const Shape& shape : {Shape{1, 1100, 4096}, Shape{1, 35, 11008}, Shape{5, 67, 1024}})
    for (const bool with_norm : {false, true})
      for (const bool is_gated : {false, true})
        for (const float threshold : {0.0f, 2.5f, 1.0f}) agree(random, shape, with_norm, is_gated, threshold);
}

/// Small enough for tools that watch every access.
TEST_F(MatmulInt8FusedTest, SmallProductsAgreeWithTheirParts) {
  Random random(12);
  for (const Shape& shape : {Shape{1, 64, 576}, Shape{8, 40, 272}})
    for (const bool is_fused : {false, true}) agree(random, shape, is_fused, is_fused, 2.5f);
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
