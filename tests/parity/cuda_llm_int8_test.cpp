// LLM.int8() against bitsandbytes on CUDA: codes and scales byte by byte, outputs up to fp16 rounding.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "golden.h"
#include "kernels/reference/table.h"

namespace nibble::parity {
namespace {

struct Rows {
  std::vector<int8_t> q;
  std::vector<float> absmax;
  std::vector<uint8_t> outlier_columns;
};

Rows quantize(const Tensor& x, float threshold) {
  const int64_t rows = x.dim(0);
  const int64_t cols = x.dim(1);
  Rows result{std::vector<int8_t>(static_cast<size_t>(rows * cols)), std::vector<float>(static_cast<size_t>(rows)),
              std::vector<uint8_t>(static_cast<size_t>(cols))};
  kernels::reference::table().quantize_int8_rows({}, {x.data(), x.dtype(), rows, cols, threshold, result.q.data(),
                                                      result.absmax.data(), result.outlier_columns.data()});
  return result;
}

/// Codes that differ, each allowed to be one step off where x * scale lies half way between two.
struct Off {
  int64_t half_way = 0;
  int64_t wrong = 0;
};

Off compare(const Tensor& x, const Rows& ours, const Tensor& theirs) {
  Off off;
  for (int64_t i = 0; i < x.count(); ++i) {
    const int difference = ours.q[static_cast<size_t>(i)] - theirs.as<int8_t>()[i];
    if (difference == 0) continue;
    const double y = double{at(x, i)} * 127 / double{ours.absmax[static_cast<size_t>(i / x.dim(1))]};
    const double from_half = std::fabs(std::fabs(y - std::trunc(y)) - 0.5);
    ++(std::abs(difference) == 1 && from_half < 127 * 0x1p-22 ? off.half_way : off.wrong);
  }
  return off;
}

class CudaLlmInt8 : public testing::Test {
 protected:
  Golden golden_{"bitsandbytes_cuda/llm_int8.safetensors"};
};

TEST_F(CudaLlmInt8, WeightCodesAndScalesAreTheSameBytes) {
  int64_t half_way = 0;
  for (const std::string& name : golden_.cases(".SCB")) {
    const Tensor w = golden_.get(field(name, 0) + ".w");
    const Rows ours = quantize(w, 0);
    const Tensor absmax = golden_.get(name + ".SCB");
    EXPECT_EQ(differences(absmax, Tensor::view(DType::f32, absmax.shape(), ours.absmax.data(), nullptr)), 0) << name;
    const Off off = compare(w, ours, golden_.get(name + ".CB"));
    EXPECT_EQ(off.wrong, 0) << name;
    half_way += off.half_way;
  }
  EXPECT_LE(half_way, 0) << half_way;
}

TEST_F(CudaLlmInt8, ActivationsLeaveOutliersOut) {
  int64_t half_way = 0;
  for (const std::string& name : golden_.cases(".SCA")) {
    const Tensor x = golden_.get(field(name, 0) + ".x");
    const float threshold = name.ends_with(".t6") ? 6.0f : 0.0f;
    Rows ours = quantize(x, threshold);
    const Tensor absmax = golden_.get(name + ".SCA");
    EXPECT_EQ(differences(absmax, Tensor::view(DType::f32, absmax.shape(), ours.absmax.data(), nullptr)), 0) << name;
    std::vector<int64_t> columns;
    for (int64_t c = 0; c < x.dim(1); ++c)
      if (ours.outlier_columns[static_cast<size_t>(c)]) columns.push_back(c);
    if (threshold > 0) {
      const Tensor expected = golden_.get(name + ".outlier_columns");
      EXPECT_EQ(columns, std::vector<int64_t>(expected.as<int64_t>(), expected.as<int64_t>() + expected.count()))
          << name;
      EXPECT_FALSE(columns.empty()) << name;
    }
    for (const int64_t c : columns)  // the library clears whole columns here, we in matmul_int8
      for (int64_t r = 0; r < x.dim(0); ++r) ours.q[static_cast<size_t>(r * x.dim(1) + c)] = 0;
    const Off off = compare(x, ours, golden_.get(name + ".CA"));
    EXPECT_EQ(off.wrong, 0) << name;
    half_way += off.half_way;
  }
  EXPECT_EQ(half_way, 0);
}

TEST_F(CudaLlmInt8, LayerOutputsAgreeUpToHalfPrecision) {
  int checked = 0;
  for (const std::string& name : golden_.cases(".y")) {
    const Tensor x = golden_.get(field(name, 0) + ".x").to(DType::f32);
    const Tensor bias = golden_.get(field(name, 0) + ".bias").to(DType::f32);
    const Tensor expected = golden_.get(name + ".y");
    const Tensor absmax = golden_.get(name + ".SCB");
    const Tensor w = golden_.get(name + ".CB");
    std::vector<float> y(static_cast<size_t>(expected.count()));
    const kernels::MatmulInput input{x.as<float>(), x.dim(0), x.dim(1), DType::f16};
    const kernels::MatmulInt8Job job{
        w.as<int8_t>(), absmax.as<float>(), w.dim(0), {y.data(), w.dim(0), bias.as<float>()}};
    kernels::reference::table().matmul_int8({}, input, name.ends_with(".t6") ? 6.0f : 0.0f, &job, 1);
    double largest = 0;
    for (int64_t i = 0; i < expected.count(); ++i) largest = std::fmax(largest, std::fabs(double{at(expected, i)}));
    for (int64_t i = 0; i < expected.count();
         ++i)  // the integer part, the outlier part and their sum are each rounded to fp16 there
      EXPECT_NEAR(y[static_cast<size_t>(i)], at(expected, i), 3 * 0x1p-11 * largest) << name << " output " << i;
    ++checked;
  }
  EXPECT_EQ(checked, 6);
}

}  // namespace
}  // namespace nibble::parity
