// matmul_4bit_fused against a norm, a product and an activation of their own; small products of every kernel.
#include <array>

#include "kernels/cuda/weight_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

using Matmul4BitFusedTest = GpuTest;

TEST_F(Matmul4BitFusedTest, ProductsAgreeWithTheirParts) {
  Random random(7);
  for (const Shape& shape : {Shape{1, 64, 576, 64}, Shape{3, 67, 4096, 64}, Shape{8, 1100, 1024, 128},
                             Shape{2, 40, 11008, 64}, Shape{20, 33, 640, 64}})
    for (const bool with_norm : {false, true})
      for (const bool is_gated : {false, true}) {
        const auto& [m, rows, cols, block] = shape;
        const std::string label = "m " + std::to_string(m) + " rows " + std::to_string(rows) + " cols " +
                                  std::to_string(cols) + (with_norm ? " norm" : "") + (is_gated ? " gated" : "");
        const bool nested = random.next() & 1;
        Weight4Bit a(random, shape, nested, quant::kNf4, 0), b(random, shape, nested, quant::kNf4, 0);
        Array x = random_array(random, DType::f32, m * cols, 1, 0), norm = random_array(random, DType::f32, cols, 1, 0);
        Array normed(DType::f32, m * cols), parts(DType::f32, m * 2 * rows), fused(DType::f32, m * 2 * rows);
        Array expected(DType::f32, m * rows), gated(DType::f32, m * rows);
        for (Array* array : {&x, &norm}) array->upload(stream());
        float* left = x.device<float>(stream());
        if (with_norm) {
          cuda().rms_norm(context,
                          {left, norm.device<float>(stream()), m, cols, 1e-5f, 1, normed.device<float>(stream())});
          left = normed.device<float>(stream());
        }
        const auto jobs = [&, rows = shape.rows](Array& y) {
          return std::array{a.job(stream(), y.device<float>(stream()), 2 * rows, true, false),
                            b.job(stream(), y.device<float>(stream()) + rows, 2 * rows, false, false)};
        };
        const auto separate = jobs(parts), together = jobs(fused);
        cuda().matmul_4bit(context, {left, m, cols, DType::bf16, true}, separate.data(), 2);
        Fused4BitArgs args{
            .input = {x.device<float>(stream()), m, cols, DType::bf16, true}, .jobs = together.data(), .count = 2};
        if (with_norm) args.norm_weight = norm.device<float>(stream());
        args.eps = 1e-5f;
        args.weight_offset = 1;
        args.is_gated = is_gated;
        args.gated_out = {gated.device<float>(stream()), rows};
        ASSERT_TRUE(cuda().matmul_4bit_fused(context, args)) << label;
        if (is_gated)
          cuda().activate(context, {parts.device<float>(stream()), parts.device<float>(stream()) + rows, 2 * rows, m,
                                    rows, Activation::silu, expected.device<float>(stream())});
        finish(label);
        for (Array* array : {&parts, &expected, &fused, &gated}) array->download(stream(), label);
        // A norm summed in another order may round x elsewhere.
        const double scale = largest(parts);
        expect_within(is_gated ? expected : parts, is_gated ? gated : fused,
                      (with_norm ? 2e-3 : 1e-6) * scale * (is_gated ? scale : 1), 0, label);
      }
  Weight4Bit odd(random, {1, 8, 48, 32}, true, quant::kNf4, 0);
  Array x = random_array(random, DType::f32, 48), y(DType::f32, 8);
  const auto job = odd.job(stream(), y.device<float>(stream()), 8, false, false);
  EXPECT_FALSE(cuda().matmul_4bit_fused(
      context, {.input = {x.device<float>(stream()), 1, 48, DType::bf16}, .jobs = &job, .count = 1}));
}

/// Gate and up of more rows than batch-invariant mode multiplies at once, against its products.
TEST_F(Matmul4BitFusedTest, GatedProductsOfManyRowsAgreeWithTheirParts) {
  Random random(13);
  for (const Shape& shape :
       {Shape{9, 64, 576, 64}, Shape{16, 1100, 4096, 64}, Shape{13, 300, 4160, 128}, Shape{16, 43, 11008, 64},
        Shape{12, 2200, 8192, 64}, Shape{20, 70, 576, 64}, Shape{32, 300, 640, 64}})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const auto& [m, rows, cols, block] = shape;
      const std::string label = "m " + std::to_string(m) + " rows " + std::to_string(rows) + " cols " +
                                std::to_string(cols) + " to " + std::string(name_of(dtype));
      const bool nested = random.next() & 1;
      Weight4Bit a(random, shape, nested, quant::kNf4, 0), b(random, shape, nested, quant::kNf4, 0);
      Array x = random_array(random, DType::bf16, m * cols, 1, 0);
      x.upload(stream());
      Array parts(DType::f32, m * 2 * rows), expected(DType::f32, m * rows), gated(dtype, m * rows);
      const std::array jobs{a.job(stream(), parts.device<float>(stream()), 2 * rows, true, false),
                            b.job(stream(), parts.device<float>(stream()) + rows, 2 * rows, false, false)};
      MatmulInput input{x.device(stream()), m, cols, DType::bf16, true, DType::bf16};
      cuda().matmul_4bit(context, input, jobs.data(), 2);
      cuda().activate(context, {parts.device<float>(stream()), parts.device<float>(stream()) + rows, 2 * rows, m, rows,
                                Activation::silu, expected.device<float>(stream())});
      input.batch_invariant = false;
      Fused4BitArgs args{.input = input, .jobs = jobs.data(), .count = 2};
      args.is_gated = true;
      args.gated_out = {gated.device(stream()), rows, nullptr, false, dtype};
      if (!cuda().matmul_4bit_fused(context, args)) GTEST_SKIP() << "no such kernel for this GPU";
      finish(label);
      parts.download(stream(), label);
      expected.download(stream(), label);
      gated.download(stream(), label);
      const double scale = largest(parts);
      expect_within(expected, gated, 4e-6 * scale * scale, dtype == DType::bf16 ? 0x1p-8 : 0, label);
    }
}

/// Small enough for tools that watch every access: each kernel against batch-invariant mode, to the bit.
TEST_F(Matmul4BitFusedTest, SmallProductsAreExact) {
  Random random(14);
  const quant::CodeBook4Bit book = exact_book();
  for (const Shape& shape :
       {Shape{2, 37, 576, 64}, Shape{9, 37, 576, 64}, Shape{20, 300, 192, 64}, Shape{40, 130, 192, 64},
        Shape{100, 130, 192, 64}, Shape{16, 300, 4096, 64}, Shape{20, 700, 4096, 64}}) {
    const auto& [m, rows, cols, block] = shape;
    const std::string label = "m " + std::to_string(m) + " rows " + std::to_string(rows);
    Weight4Bit w(random, shape, false, book, 0);
    for (int64_t i = 0; i < w.absmax.count(); ++i) w.absmax.set(i, static_cast<float>(1 << random.next() % 3));
    Array x = exact_activations(random, m * cols, stream()), expected(DType::f32, m * rows),
          found(DType::f32, m * rows);
    for (int64_t i = 0; i < m * rows; ++i) expected.set(i, 2), found.set(i, 2);
    for (Array* array : {&expected, &found}) array->upload(stream());
    for (Array* y : {&expected, &found}) {
      const auto job = w.job(stream(), y->device(stream()), rows, false, true);
      cuda().matmul_4bit(context, {x.device(stream()), m, cols, DType::bf16, y == &expected, DType::bf16}, &job, 1);
      finish(label);
      y->download(stream(), label);
    }
    expect_close(expected, found, 0, label);
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
