// The low-rank product is the best one; adapters that start as the error of quantization.
#include "adapters/loftq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "adapters/factorize.h"
#include "base/error.h"
#include "base/random.h"
#include "models/layer.h"
#include "nn/dora.h"

namespace nibble::adapters {
namespace {

const std::filesystem::path kLlama = std::filesystem::path(NIBBLE_TEST_DATA) / "models/llama";

/// |m - left right|.
double distance(const Tensor& m, const Factors& factors, float scale = 1) {
  const int64_t rank = factors.right.dim(0), cols = m.dim(1);
  double sum = 0;
  for (int64_t r = 0; r < m.dim(0); ++r)
    for (int64_t c = 0; c < cols; ++c) {
      double value = 0;
      for (int64_t k = 0; k < rank; ++k)
        value += static_cast<double>(factors.left.as<float>()[r * rank + k]) *
                 static_cast<double>(factors.right.as<float>()[k * cols + c]);
      sum += std::pow(static_cast<double>(m.as<float>()[r * cols + c]) - static_cast<double>(scale) * value, 2);
    }
  return std::sqrt(sum);
}

TEST(Factorize, LeavesWhatTheBestProductLeaves) {
  const ops::Backend backend(1);
  // Singular values 1, 1/2, 1/3, ... along reflected axes: H = I - 2 u u^T on the left, axes on the right.
  constexpr int64_t kRows = 40, kCols = 30;
  Random random(3);
  std::vector<double> u(kRows);
  double square = 0;
  for (double& value : u) square += std::pow(value = random.normal(), 2);
  Tensor m(DType::f32, {kRows, kCols});
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kCols; ++c)
      m.as<float>()[r * kCols + c] = static_cast<float>(
          ((r == c ? 1 : 0) - 2 * u[static_cast<size_t>(r)] * u[static_cast<size_t>(c)] / square) / double(c + 1));
  for (const int64_t rank : {1, 5, 30}) {
    double left = 0;
    for (int64_t k = rank; k < kCols; ++k) left += 1.0 / std::pow(double(k + 1), 2);
    EXPECT_NEAR(distance(m, factorize(backend, m, rank, 1)), std::sqrt(left), 1e-3 * std::sqrt(left) + 1e-5) << rank;
  }
}

TEST(Factorize, SettlesWhereValuesAreClose) {
  const ops::Backend backend(1);
  Random random(5);
  Tensor m(DType::f32, {90, 120});  // a random matrix's values are some percents apart
  for (int64_t i = 0; i < m.count(); ++i) m.as<float>()[i] = static_cast<float>(random.normal());
  const Factors one = factorize_settled(backend, m, 8, 1), other = factorize_settled(backend, m, 8, 2);
  EXPECT_LT(std::abs(distance(m, one) - distance(m, other)), 1e-4);
  Tensor product(DType::f32, m.shape());
  for (int64_t r = 0; r < 90; ++r)
    for (int64_t c = 0; c < 120; ++c) {
      float value = 0;
      for (int64_t k = 0; k < 8; ++k) value += one.left.as<float>()[r * 8 + k] * one.right.as<float>()[k * 120 + c];
      product.as<float>()[r * 120 + c] = value;
    }
  EXPECT_LT(distance(product, other), 1e-2);  // of about 50
}

TEST(Factorize, AMatrixOfLowRankIsItsProduct) {
  const ops::Backend backend(1);
  Tensor m(DType::f32, {20, 50});
  for (int64_t i = 0; i < m.count(); ++i) {
    const int64_t row = i / 50;
    m.as<float>()[i] = std::sin(float(row)) * std::cos(float(i % 50)) + 0.1f * float(row);
  }
  EXPECT_LT(distance(m, factorize(backend, m, 4, 1)), 1e-4);
}

TEST(LoftQ, StartsCloserToTheOriginal) {
  LoadOptions options;
  options.dtype = DType::f32;
  options.threads = 1;
  options.quantization_config.load_in_4bit = true;
  const auto decoder = models::load_decoder(kLlama, options);
  const auto original = Checkpoint::open(kLlama);
  for (const int64_t rank : {8, 64}) {
    Adapter adapter = create_adapter(decoder->spec(), {.r = rank, .lora_alpha = 16}, 1);
    start_from_quantization_error(adapter, *decoder, *original, 1);
    for (const AdapterLayer& layer : adapter.layers) {
      const auto held = models::bind_linear(decoder->backend(), decoder->spec(), decoder->weights(), layer.module);
      const Tensor weight = original->get(layer.module + ".weight").to(DType::f32);
      const Tensor quantized = nn::plain_weight(decoder->backend(), held);
      Tensor error(DType::f32, weight.shape());
      for (int64_t i = 0; i < error.count(); ++i)
        error.as<float>()[i] = weight.as<float>()[i] - quantized.as<float>()[i];
      const double before = distance(error, {layer.lora.b->value, layer.lora.a->value}, 0);
      const double after = distance(error, {layer.lora.b->value, layer.lora.a->value}, layer.lora.scale);
      EXPECT_LT(after, (rank == 64 ? 1e-3 : 0.9) * before) << layer.module;
    }
  }
}

TEST(LoftQ, NeedsAQuantizedModelAndItsOriginal) {
  LoadOptions options;
  options.threads = 1;
  const auto decoder = models::load_decoder(kLlama, options);
  Adapter adapter = create_adapter(decoder->spec(), {}, 1);
  EXPECT_THROW(start_from_quantization_error(adapter, *decoder, *Checkpoint::open(kLlama), 1), Error);
}

}  // namespace
}  // namespace nibble::adapters
