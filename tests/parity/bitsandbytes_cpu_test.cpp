// The formats against bitsandbytes on a CPU: where that path differs from the library's CUDA path, we are with CUDA;
// where it is wrong, we are right.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/half.h"
#include "code_allowance.h"
#include "golden.h"
#include "kernels/reference/table.h"
#include "quant/int8_vectorwise.h"

namespace nibble::parity {
namespace {

constexpr int64_t kBlock = 64;

const kernels::Kernels& reference() { return kernels::reference::table(); }

struct Quantized {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;
};

Quantized quantize(const Tensor& x, const quant::CodeBook4Bit& book) {
  Quantized result{std::vector<uint8_t>(static_cast<size_t>(quant::packed_size_bytes(x.count()))),
                   std::vector<float>(static_cast<size_t>(quant::block_count(x.count(), kBlock)))};
  reference().quantize_4bit(
      {}, {x.data(), x.dtype(), x.count(), kBlock, &book, result.packed.data(), result.absmax.data()});
  return result;
}

const quant::CodeBook4Bit& code_book(const std::string& case_name) {
  return field(case_name, 2) == "nf4" ? quant::kNf4 : quant::kFp4;
}

std::vector<uint8_t> unpack(const uint8_t* packed, int64_t count) {
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    codes[static_cast<size_t>(i)] = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
  return codes;
}

bool is_ordinary(const std::string& name) {
  return name.starts_with("odd") || name.starts_with("cross") || name.starts_with("whole");
}

class BitsandbytesCpu : public testing::Test {
 protected:
  Golden golden_{"bitsandbytes_cpu/formats.safetensors"};

  Tensor input(const std::string& name) { return golden_.get("in." + field(name, 0) + "." + field(name, 1)); }
  std::vector<uint8_t> codes(const std::string& name) {
    return unpack(golden_.get(name + ".packed").as<uint8_t>(), input(name).count());
  }
};

TEST_F(BitsandbytesCpu, Nf4HasTheSameBytesForOrdinaryValues) {
  int checked = 0;
  for (const std::string& name : golden_.cases(".packed")) {
    if (!(is_ordinary(name) || name.starts_with("nf4edges")) || field(name, 2) != "nf4" || name.ends_with(".dq"))
      continue;
    const Tensor x = input(name);
    const Quantized ours = quantize(x, quant::kNf4);
    const Tensor absmax = golden_.get(name + ".absmax");
    EXPECT_EQ(differences(absmax, Tensor::view(DType::f32, absmax.shape(), ours.absmax.data(), nullptr)), 0) << name;
    const auto theirs = golden_.get(name + ".packed");
    const CodeDifferences found =
        compare_codes_4bit(x, kBlock, quant::kNf4, ours.absmax, ours.packed.data(), theirs.as<uint8_t>());
    EXPECT_EQ(found.wrong + found.at_threshold, 0) << name;
    EXPECT_EQ(ours.packed.back(), theirs.as<uint8_t>()[theirs.count() - 1]) << name << ": padding";
    ++checked;
  }
  EXPECT_EQ(checked, 22);
}

// That path takes exact midpoints, lets ties fall towards -1 and gives code 8 to tiny positive numbers; CUDA has
// decimal literals up to 14 ulp lower, lets ties fall towards 0 and gives code 8 to tiny negative ones. Values are the
// same elsewhere.
TEST_F(BitsandbytesCpu, Fp4DiffersOnlyAtBoundariesAndInTheSignOfZero) {
  int64_t at_boundary = 0;
  for (const std::string& name : golden_.cases(".packed")) {
    if (!(is_ordinary(name) || name.starts_with("fp4edges")) || field(name, 2) != "fp4" || name.ends_with(".dq"))
      continue;
    const Tensor x = input(name);
    const Quantized quantized = quantize(x, quant::kFp4);
    const std::vector<uint8_t> ours = unpack(quantized.packed.data(), x.count());
    const std::vector<uint8_t> theirs = codes(name);
    for (size_t i = 0; i < ours.size(); ++i) {
      if (quant::kFp4.values[ours[i]] == quant::kFp4.values[theirs[i]]) continue;
      const float y = at(x, static_cast<int64_t>(i)) * (1 / quantized.absmax[i / kBlock]);
      const auto is_near = [&](float threshold) { return ulps_between(y, threshold) <= 16; };
      EXPECT_TRUE(std::any_of(quant::kFp4.thresholds.begin(), quant::kFp4.thresholds.end(), is_near))
          << name << " element " << i;
      ++at_boundary;
    }
  }
  EXPECT_GT(at_boundary, 0);
  EXPECT_LE(at_boundary, 40);
}

TEST_F(BitsandbytesCpu, ZeroBlocksAreCodeZeroAsOnCuda) {
  const Quantized ours = quantize(input("zeros2x64.f32"), quant::kNf4);
  EXPECT_EQ(golden_.get("zeros2x64.f32.nf4.bs64.packed").as<uint8_t>()[0], 0x77);
  EXPECT_TRUE(std::all_of(ours.packed.begin(), ours.packed.begin() + 32, [](uint8_t byte) { return byte == 0; }));
  EXPECT_EQ(ours.absmax[0], 0);
  const Quantized tail = quantize(input("zerotail1x80.f32"), quant::kNf4);
  EXPECT_EQ(golden_.get("zerotail1x80.f32.nf4.bs64.absmax").as<float>()[1], 1e-38f);
  EXPECT_EQ(tail.absmax[1], 0);
}

TEST_F(BitsandbytesCpu, OneNanOrInfDoesNotSpoilItsBlock) {
  const std::vector<uint8_t> theirs = codes("nan2x64.f32.nf4.bs64");
  EXPECT_EQ(std::count(theirs.begin(), theirs.begin() + 64, 15), 64);  // every element of the block is lost there
  const Tensor x = input("nan2x64.f32");
  const Quantized ours = quantize(x, quant::kNf4);
  const std::vector<uint8_t> our_codes = unpack(ours.packed.data(), x.count());
  EXPECT_EQ(our_codes[5], 0);
  for (int64_t i = 0; i < 64; ++i) {
    if (i == 5) continue;
    EXPECT_NEAR(quant::kNf4.values[our_codes[static_cast<size_t>(i)]] * ours.absmax[0], at(x, i),
                0.16f * ours.absmax[0])
        << i;
  }
  EXPECT_EQ(codes("inf2x64.f32.nf4.bs64")[5], 15);
  EXPECT_EQ(unpack(quantize(input("inf2x64.f32"), quant::kNf4).packed.data(), 64)[5], 0);
}

// That path reads the absmax of the wrong block when a row is a multiple of 16 but not of the block size.
TEST_F(BitsandbytesCpu, DequantizesRowsThatBlocksCross) {
  int right = 0;
  int wrong = 0;
  for (const std::string& name : golden_.cases(".dequantized")) {
    if (!is_ordinary(name) || name.ends_with(".dq")) continue;
    const Tensor theirs = golden_.get(name + ".dequantized");
    const Tensor absmax = golden_.get(name + ".absmax");
    Tensor ours(theirs.dtype(), theirs.shape());
    reference().dequantize_4bit({}, {golden_.get(name + ".packed").as<uint8_t>(),
                                     {.values = absmax.as<float>()},
                                     ours.count(),
                                     kBlock,
                                     code_book(name).values.data(),
                                     ours.data(),
                                     ours.dtype()});
    const std::vector<uint8_t> code = codes(name);
    int64_t differing = 0;
    for (int64_t i = 0; i < ours.count(); ++i) {
      const float exact = code_book(name).values[code[static_cast<size_t>(i)]] * absmax.as<float>()[i / kBlock];
      const float rounded = ours.dtype() == DType::f32    ? exact
                            : ours.dtype() == DType::bf16 ? to_float(to_bf16(exact))
                                                          : to_float(to_f16(exact));
      ASSERT_EQ(at(ours, i), rounded) << name << " element " << i;
      differing += at(theirs, i) != rounded ? 1 : 0;
    }
    const bool is_defect = theirs.dim(1) % 16 == 0 && theirs.dim(1) % kBlock != 0;
    EXPECT_EQ(differing > 100, is_defect) << name << ": " << differing;
    EXPECT_EQ(differing == 0, !is_defect) << name << ": " << differing;
    ++(is_defect ? wrong : right);
  }
  EXPECT_EQ(right, 24);
  EXPECT_EQ(wrong, 18);
}

struct Blockwise {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

Blockwise quantize_8bit(const Tensor& x, const float* book) {
  Blockwise result{std::vector<uint8_t>(static_cast<size_t>(x.count())),
                   std::vector<float>(static_cast<size_t>(quant::block_count(x.count(), 256)))};
  reference().quantize_8bit({}, {x.data(), x.dtype(), x.count(), 256, book, result.codes.data(), result.absmax.data()});
  return result;
}

// That path looks codes up in 65,536 bins, so nothing nearer to zero than 1.5e-5 of absmax can be stored: zero itself
// becomes 2.1e-5.
TEST_F(BitsandbytesCpu, ZeroAmongOthersStaysZeroIn8Bit) {
  const Tensor x = golden_.get("8bit.zeroamong.in");
  const Blockwise ours = quantize_8bit(x, quant::kDynamicSigned.data());
  EXPECT_EQ(golden_.get("8bit.zeroamong.codes").as<uint8_t>()[1], 131);
  EXPECT_EQ(ours.codes[1], 127);
  EXPECT_EQ(ours.codes[2], 127);
  for (int64_t i = 0; i < x.count(); ++i) {  // nearest, by trying all
    const float y = at(x, i) / ours.absmax[0];
    float best = INFINITY;
    for (const float value : quant::kDynamicSigned) best = std::fmin(best, std::fabs(value - y));
    EXPECT_EQ(std::fabs(quant::kDynamicSigned[ours.codes[static_cast<size_t>(i)]] - y), best) << i;
  }
}

TEST_F(BitsandbytesCpu, EightBitCodesAreNearerToTheValues) {
  for (const auto& [name, book] : {std::pair{"8bit.normal", quant::kDynamicSigned.data()},
                                   std::pair{"8bit.square", quant::kDynamicUnsigned.data()}}) {
    const std::string base = name;
    const Tensor x = golden_.get(base + ".in");
    const Tensor theirs = golden_.get(base + ".codes");
    const Tensor absmax = golden_.get(base + ".absmax");
    const Blockwise ours = quantize_8bit(x, book);
    EXPECT_EQ(differences(absmax, Tensor::view(DType::f32, absmax.shape(), ours.absmax.data(), nullptr)), 0);
    int64_t different = 0;
    for (int64_t i = 0; i < x.count(); ++i) {
      const float scale = absmax.as<float>()[i / 256];
      const float our_error = std::fabs(book[ours.codes[static_cast<size_t>(i)]] * scale - at(x, i));
      const float their_error = std::fabs(book[theirs.as<uint8_t>()[i]] * scale - at(x, i));
      EXPECT_LE(our_error, their_error * 1.0001f + 1e-7f) << name << " element " << i;
      different += ours.codes[static_cast<size_t>(i)] != theirs.as<uint8_t>()[i] ? 1 : 0;
    }
    EXPECT_LE(different, x.count() * 4 / 100) << name;
  }
}

TEST_F(BitsandbytesCpu, Int8CodesAgreeAndTheProductHasNoBias) {
  const Tensor x = golden_.get("int8.x");
  const Tensor scales = golden_.get("int8.SCA");
  std::vector<int8_t> q(static_cast<size_t>(x.count()));
  std::vector<float> absmax(static_cast<size_t>(x.dim(0)));
  std::vector<uint8_t> columns(static_cast<size_t>(x.dim(1)));
  reference().quantize_int8_rows(
      {}, {x.data(), x.dtype(), x.dim(0), x.dim(1), 6.0f, q.data(), absmax.data(), columns.data()});
  EXPECT_EQ(differences(scales, Tensor::view(DType::f32, scales.shape(), absmax.data(), nullptr)), 0);
  for (int64_t i = 0; i < x.count(); ++i) {
    if (columns[static_cast<size_t>(i % x.dim(1))]) continue;
    EXPECT_EQ(q[static_cast<size_t>(i)], golden_.get("int8.CA").as<int8_t>()[i]) << i;
  }

  const Tensor w = golden_.get("int8.CB");
  const Tensor w_absmax = golden_.get("int8.SCB");
  const Tensor product = golden_.get("int8.product");
  const Tensor biased = golden_.get("int8.dequantized_product");
  std::vector<float> cleared = std::vector<float>(static_cast<size_t>(x.count()));
  for (int64_t i = 0; i < x.count(); ++i)
    cleared[static_cast<size_t>(i)] = columns[static_cast<size_t>(i % x.dim(1))] ? 0.0f : at(x, i);
  std::vector<float> y(static_cast<size_t>(product.count()));
  const kernels::MatmulInt8Job job{w.as<int8_t>(), w_absmax.as<float>(), w.dim(0), {y.data(), w.dim(0)}};
  reference().matmul_int8({}, {cleared.data(), x.dim(0), x.dim(1), DType::f32}, 0, &job, 1);
  for (int64_t i = 0; i < product.count(); ++i) {
    const double exact = double{static_cast<double>(product.as<int32_t>()[i])} *
                         double{absmax[static_cast<size_t>(i / w.dim(0))]} *
                         double{w_absmax.as<float>()[i % w.dim(0)]} / (127.0 * 127.0);
    EXPECT_NEAR(y[static_cast<size_t>(i)] / exact, 1, 1e-7);
    EXPECT_NEAR(biased.as<float>()[i] / exact, 1 + 1.8e-5, 5e-7);  // 6.200124e-05 for 1 / 127^2
  }
}

// The library passes outputs through fp16, where bfloat16 activations can exceed 65504.
TEST(LlmInt8, LargeOutputsStayFinite) {
  constexpr int64_t kCols = 64;
  std::vector<float> x(kCols, 300);
  std::vector<int8_t> w(kCols, 127);
  const float absmax = 100;
  float y = 0;
  const kernels::MatmulInt8Job job{w.data(), &absmax, 1, {&y, 1}};
  reference().matmul_int8({}, {x.data(), 1, kCols, DType::bf16}, 0, &job, 1);
  EXPECT_NEAR(y, 300.0f * 100 * kCols, 1);
  reference().matmul_int8({}, {x.data(), 1, kCols, DType::bf16}, 6.0f, &job, 1);
  EXPECT_NEAR(y, 300.0f * 100 * kCols, 1);
}

// An activation that fp16 cannot hold is an outlier, and outliers are not rounded to fp16.
TEST(LlmInt8, ActivationsBeyondHalfPrecisionStayFinite) {
  const std::vector<float> x{1e6f, 1, -2, 0.5f};
  const std::vector<int8_t> w{127, 64, 32, -127};
  const float absmax = 1;
  float y = 0;
  const kernels::MatmulInt8Job job{w.data(), &absmax, 1, {&y, 1}};
  reference().matmul_int8({}, {x.data(), 1, 4, DType::f32}, 6.0f, &job, 1);
  EXPECT_NEAR(y, 1e6, 1);
}

}  // namespace
}  // namespace nibble::parity
