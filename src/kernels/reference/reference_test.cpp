// The reference backend's matmuls and decoder entries against values worked out here in another way.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "kernels/reference/table.h"

namespace nibble::kernels {
namespace {

const Kernels& reference() { return reference::table(); }

std::vector<float> normal(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(count);
  for (float& value : x) value = static_cast<float>(random.normal());
  return x;
}

TEST(ReferenceTable, HasEveryEntry) {
  const Kernels& k = reference();
  EXPECT_TRUE(k.quantize_4bit && k.dequantize_4bit && k.quantize_8bit && k.dequantize_8bit && k.quantize_int8_rows &&
              k.dequantize_int8_rows);
  EXPECT_TRUE(k.matmul_4bit && k.matmul_dense && k.matmul_int8 && k.rms_norm && k.layer_norm && k.rope);
  EXPECT_TRUE(k.cache_append && k.attention && k.activate && k.embed);
}

/// A weight whose blocks cross rows: 45 columns.
class Matmul : public testing::Test {
 protected:
  static constexpr int64_t kRows = 7, kCols = 45, kBlock = 32, kM = 3;
  void SetUp() override {
    packed_.resize(static_cast<size_t>(quant::packed_size_bytes(kRows * kCols)));
    absmax_.resize(static_cast<size_t>(quant::block_count(kRows * kCols, kBlock)));
    reference().quantize_4bit(
        {}, {w_.data(), DType::f32, kRows * kCols, kBlock, &quant::kNf4, packed_.data(), absmax_.data()});
  }
  Matmul4BitJob job(float* y, int64_t stride) const {
    return {packed_.data(), {.values = absmax_.data()}, kBlock, quant::kNf4.values.data(), kRows, {y, stride}};
  }
  std::vector<float> w_ = normal(kRows * kCols, 1);
  std::vector<float> x_ = normal(kM * kCols, 2);
  std::vector<uint8_t> packed_;
  std::vector<float> absmax_;
};

TEST_F(Matmul, FourBitIsDenseWithTheDequantizedWeight) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    std::vector<float> decoded(kRows * kCols);  // large enough for every dtype
    reference().dequantize_4bit({}, {packed_.data(),
                                     {.values = absmax_.data()},
                                     kRows * kCols,
                                     kBlock,
                                     quant::kNf4.values.data(),
                                     decoded.data(),
                                     dtype});
    std::vector<float> y(kM * kRows), expected(kM * kRows);
    const MatmulInput input{x_.data(), kM, kCols, dtype};
    const Matmul4BitJob four = job(y.data(), kRows);
    const MatmulDenseJob dense{decoded.data(), dtype, kRows, {expected.data(), kRows}};
    reference().matmul_4bit({}, input, &four, 1);
    reference().matmul_dense({}, input, &dense, 1);
    EXPECT_EQ(y, expected) << name_of(dtype);
  }
}

TEST_F(Matmul, Bf16ActivationsAreReadExactlyAndWrittenRoundedOnce) {
  std::vector<bf16_t> x, y(kM * kRows, to_bf16(1.5f));
  std::vector<float> widened, expected(kM * kRows, 1.5f);
  for (const float value : x_) {
    x.push_back(to_bf16(value));
    widened.push_back(to_float(x.back()));
  }
  const MatmulDenseJob narrow{w_.data(), DType::f32, kRows, {y.data(), kRows, nullptr, true, DType::bf16}};
  reference().matmul_dense({}, {x.data(), kM, kCols, DType::f32, false, DType::bf16}, &narrow, 1);
  const MatmulDenseJob wide{w_.data(), DType::f32, kRows, {expected.data(), kRows, nullptr, true}};
  reference().matmul_dense({}, {widened.data(), kM, kCols, DType::f32}, &wide, 1);
  for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(to_float(y[i]), to_float(to_bf16(expected[i]))) << i;
}

TEST_F(Matmul, DenseIsTheDotProductWithBiasAndAccumulation) {
  const std::vector<float> bias = normal(kRows, 3);
  const std::vector<float> start = normal(kM * 10, 4);
  std::vector<float> y = start;  // rows of 10, of which 7 are written
  const MatmulDenseJob job{w_.data(), DType::f32, kRows, {y.data(), 10, bias.data(), true}};
  reference().matmul_dense({}, {x_.data(), kM, kCols, DType::f32}, &job, 1);
  for (size_t i = 0; i < kM; ++i)
    for (size_t n = 0; n < 10; ++n) {
      double sum = n < kRows ? double{bias[n]} : 0;
      if (n < kRows)
        for (size_t c = 0; c < kCols; ++c) sum += double{x_[i * kCols + c]} * double{w_[n * kCols + c]};
      EXPECT_NEAR(y[i * 10 + n], double{start[i * 10 + n]} + sum, 1e-5);
    }
}

TEST_F(Matmul, JobsThreadsAndRowsAreIndependent) {
  std::vector<float> first(kM * kRows), second(kM * kRows), alone(kM * kRows);
  ThreadPool pool(3);
  const MatmulInput input{x_.data(), kM, kCols, DType::bf16};
  const Matmul4BitJob jobs[] = {job(first.data(), kRows), job(second.data(), kRows)};
  reference().matmul_4bit({&pool}, input, jobs, 2);
  EXPECT_EQ(first, second);
  for (int64_t i = 0; i < kM; ++i) {
    const Matmul4BitJob one = job(alone.data() + i * kRows, kRows);
    reference().matmul_4bit({}, {x_.data() + i * kCols, 1, kCols, DType::bf16}, &one, 1);
  }
  EXPECT_EQ(first, alone);
}

TEST_F(Matmul, Int8IsNearDenseAndNearerWithOutliersApart) {
  for (size_t i = 0; i < kM; ++i) x_[i * kCols + 11] *= 60;
  std::vector<int8_t> q(kRows * kCols);
  std::vector<float> absmax(kRows);
  reference().quantize_int8_rows({}, {w_.data(), DType::f32, kRows, kCols, 0, q.data(), absmax.data(), nullptr});
  std::vector<float> decoded(kRows * kCols);
  reference().dequantize_int8_rows({}, {q.data(), absmax.data(), kRows, kCols, decoded.data(), DType::f32});
  std::vector<float> exact(kM * kRows);
  const MatmulInput input{x_.data(), kM, kCols, DType::f32};
  const MatmulDenseJob dense{decoded.data(), DType::f32, kRows, {exact.data(), kRows}};
  reference().matmul_dense({}, input, &dense, 1);
  double errors[2] = {};
  for (const int with_outliers : {0, 1}) {
    std::vector<float> y(kM * kRows);
    const MatmulInt8Job job{q.data(), absmax.data(), kRows, {y.data(), kRows}};
    reference().matmul_int8({}, input, with_outliers ? 6.0f : 0.0f, &job, 1);
    for (size_t i = 0; i < y.size(); ++i) errors[with_outliers] += std::fabs(double{y[i]} - double{exact[i]});
  }
  EXPECT_LT(errors[0] / (kM * kRows), 2.5);
  EXPECT_LT(errors[1], errors[0] / 5);
}

TEST(RmsNorm, KnownValuesInPlace) {
  std::vector<float> x{3, 4, 0, 0, 1, 1, 1, 1};
  const std::vector<float> weight{1, 2, 3, 0};
  reference().rms_norm({}, {x.data(), weight.data(), 2, 4, 0, 1, x.data()});
  EXPECT_EQ(x, (std::vector<float>{2.4f, 4.8f, 0, 0, 2, 3, 4, 1}));
}

TEST(LayerNorm, KnownValues) {
  const std::vector<float> x{1, 3, 1, 3};
  const std::vector<float> weight{1, 1, 2, 2}, bias{0, 10, 0, 10};
  std::vector<float> out(4);
  reference().layer_norm({}, {x.data(), weight.data(), bias.data(), 1, 4, 0, out.data()});
  EXPECT_EQ(out, (std::vector<float>{-1, 11, -2, 12}));
  reference().layer_norm({}, {x.data(), weight.data(), nullptr, 1, 4, 3, out.data()});
  EXPECT_EQ(out, (std::vector<float>{-0.5f, 0.5f, -1, 1}));
  reference().layer_norm({}, {x.data(), weight.data(), bias.data(), 2, 2, 0, out.data(), 2});
  EXPECT_EQ(out, (std::vector<float>{-1, 11, -2, 12}));
}

TEST(Rope, HalvesAndInterleavedRotateTheSamePairs) {
  constexpr int64_t kTokens = 3, kHeads = 2, kDim = 10, kRotary = 6, kStride = 23;
  const std::vector<float> start = normal(kTokens * kStride, 5);
  std::vector<float> cos(kTokens * kRotary / 2), sin(cos.size());
  for (size_t i = 0; i < cos.size(); ++i) {
    cos[i] = std::cos(0.3f * static_cast<float>(i));
    sin[i] = std::sin(0.3f * static_cast<float>(i));
  }
  for (const bool interleaved : {false, true}) {
    std::vector<float> x = start;
    reference().rope({}, {x.data(), kStride, cos.data(), sin.data(), kTokens, kHeads, kDim, kRotary, interleaved});
    for (size_t t = 0; t < kTokens; ++t)
      for (size_t h = 0; h < kHeads; ++h)
        for (size_t i = 0; i < kRotary / 2; ++i) {
          const size_t base = t * kStride + h * kDim;
          const size_t a = base + (interleaved ? 2 * i : i), b = base + (interleaved ? 2 * i + 1 : i + kRotary / 2);
          const float c = cos[t * 3 + i], s = sin[t * 3 + i];
          EXPECT_NEAR(x[a], start[a] * c - start[b] * s, 1e-6);
          EXPECT_NEAR(x[b], start[b] * c + start[a] * s, 1e-6);
        }
    for (size_t i = 0; i < x.size(); ++i)
      if (i % kStride >= kHeads * kDim || i % kStride % kDim >= kRotary) {
        EXPECT_EQ(x[i], start[i]) << i;
      }
  }
}

TEST(Activate, KnownValues) {
  const std::vector<float> gate{-1, 0, 1, 2}, up{2, 2, 2, -1};
  std::vector<float> out(4);
  const auto run = [&](Activation activation, const float* second) {
    reference().activate({}, {gate.data(), second, 2, 2, 2, activation, out.data()});
    return out;
  };
  const auto expect = [&](Activation activation, std::vector<float> expected) {
    run(activation, nullptr);
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(out[i], expected[i], 1e-6);
  };
  expect(Activation::silu, {-0.26894142f, 0, 0.73105858f, 1.76159416f});
  expect(Activation::gelu, {-0.15865525f, 0, 0.84134475f, 1.95449974f});
  expect(Activation::gelu_tanh, {-0.15880801f, 0, 0.84119199f, 1.95459769f});
  expect(Activation::quick_gelu, {-0.15420423f, 0, 0.84579577f, 1.93565903f});
  expect(Activation::tanh_, {-0.76159416f, 0, 0.76159416f, 0.96402758f});
  EXPECT_EQ(run(Activation::relu, up.data()), (std::vector<float>{0, 0, 2, -2}));
}

TEST(Activate, InPlaceOverAWiderStride) {
  std::vector<float> x{1, 2, 10, 20, 3, 4, 30, 40};  // rows of gate (2) and up (2)
  reference().activate({}, {x.data(), x.data() + 2, 4, 2, 2, Activation::relu, x.data()});
  EXPECT_EQ(std::vector<float>(x.begin(), x.begin() + 4), (std::vector<float>{10, 40, 90, 160}));
}

/// Two query heads on one key head, four cached tokens of two dimensions.
class Attention : public testing::Test {
 protected:
  std::vector<float> run(AttentionArgs args, const AttentionSequence& sequence) {
    std::vector<float> out(static_cast<size_t>(sequence.tokens * args.heads * args.head_dim));
    AttentionSequence with_out = sequence;
    with_out.out = out.data();
    args.sequences = &with_out;
    args.sequence_count = 1;
    reference().attention({}, args);
    return out;
  }
  static AttentionArgs args() {
    return {.sequences = nullptr,
            .sequence_count = 0,
            .heads = 2,
            .kv_heads = 1,
            .head_dim = 2,
            .q_stride = 4,
            .kv_dtype = DType::f32,
            .scale = 0.5f};
  }
  std::vector<float> q_{1, 0, 0, 1, 2, 0, 0, 2};  // tokens 2 and 3
  std::vector<float> k_{1, 0, 0, 1, 1, 1, -1, 2};
  std::vector<float> v_{1, 2, 3, 4, 5, 6, 7, 8};
  AttentionSequence sequence_{q_.data(), k_.data(), v_.data(), 4, 2, 2, nullptr};

  /// Weighted mean of the values' first dimension for scores of keys 0, 1, ...
  float mean(std::vector<double> scores, size_t first = 0) const {
    double total = 0, sum = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
      total += std::exp(scores[i]);
      sum += std::exp(scores[i]) * double{v_[2 * (first + i)]};
    }
    return static_cast<float>(sum / total);
  }
};

TEST_F(Attention, IsCausalAndSharesKeyHeads) {
  const std::vector<float> out = run(args(), sequence_);
  EXPECT_NEAR(out[0], mean({0.5, 0, 0.5}), 1e-6);  // token 2, head 0
  EXPECT_NEAR(out[2], mean({0, 0.5, 0.5}), 1e-6);  // token 2, head 1
  EXPECT_NEAR(out[4], mean({1, 0, 1, -1}), 1e-6);  // token 3, head 0
  EXPECT_NEAR(out[6], mean({0, 1, 1, 2}), 1e-6);   // token 3, head 1
  for (size_t i = 0; i < 8; i += 2) EXPECT_NEAR(out[i + 1], out[i] + 1, 1e-6);
}

TEST_F(Attention, WindowSoftcapAndAlibi) {
  AttentionArgs windowed = args();
  windowed.window = 2;
  EXPECT_NEAR(run(windowed, sequence_)[4], mean({1, -1}, 2), 1e-6);
  AttentionArgs capped = args();
  capped.softcap = 0.7f;
  const auto cap = [](double score) { return 0.7 * std::tanh(score / 0.7); };
  EXPECT_NEAR(run(capped, sequence_)[4], mean({cap(1), 0, cap(1), cap(-1)}), 1e-6);
  const std::vector<float> slopes{0.25f, 0.5f};
  AttentionArgs sloped = args();
  sloped.alibi_slopes = slopes.data();
  EXPECT_NEAR(run(sloped, sequence_)[6], mean({0, 1.5, 2, 3.5}), 1e-6);
  const std::vector<float> fine{0.25f, 1.0f + 3.0f / 128};  // times 3: 3.0703125, in bf16 3.0625
  sloped.alibi_slopes = fine.data();
  sloped.alibi_dtype = DType::bf16;
  sloped.alibi_scale = 0.5f;
  EXPECT_NEAR(run(sloped, sequence_)[6], mean({0, 1 + 1.0234375 / 2, 1 + 2.046875 / 2, 2 + 3.0625 / 2}), 1e-6);
}

TEST_F(Attention, LargeScoresDoNotOverflow) {
  for (float& value : q_) value *= 1e4f;
  EXPECT_NEAR(run(args(), sequence_)[6], 7, 1e-6);  // all weight on key 3
}

TEST(CacheAppend, WritesEachHeadAtItsPlace) {
  const std::vector<float> x{1, 2, 3, 4, 0, 5, 6, 7, 8, 0};  // two tokens of two heads of two, stride 5
  std::vector<bf16_t> cache(2 * 4 * 2);
  reference().cache_append({}, {x.data(), 5, cache.data(), DType::bf16, 4, 2, 1, 2, 2});
  std::vector<float> wide;
  for (const bf16_t value : cache) wide.push_back(to_float(value));
  EXPECT_EQ(wide, (std::vector<float>{0, 0, 1, 2, 5, 6, 0, 0, 0, 0, 3, 4, 7, 8, 0, 0}));
}

}  // namespace
}  // namespace nibble::kernels
