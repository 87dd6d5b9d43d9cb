// matmul_4bit against bitsandbytes on CUDA: the same 16-bit outputs but for roundings of sums, and no further from
// exact.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/half.h"
#include "golden.h"
#include "kernels/reference/table.h"
#include "quant/double_quant.h"

namespace nibble::parity {
namespace {

constexpr int64_t kBlock = 64;

/// Half the distance between neighbours near 1: what one rounding to `dtype` may cost, relatively.
double unit_roundoff(DType dtype) { return dtype == DType::f32 ? 0x1p-24 : dtype == DType::bf16 ? 0x1p-9 : 0x1p-11; }

float round_to(DType dtype, float value) {
  return dtype == DType::f32 ? value : dtype == DType::bf16 ? to_float(to_bf16(value)) : to_float(to_f16(value));
}

std::vector<float> widened(const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.count()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = at(tensor, static_cast<int64_t>(i));
  return values;
}

/// One weight, quantized by us to the bytes that the library has.
struct Weight {
  Weight(const Tensor& w, const quant::CodeBook4Bit& book, bool is_nested)
      : code_book(book), rows(w.dim(0)), cols(w.dim(1)) {
    packed.resize(static_cast<size_t>(quant::packed_size_bytes(w.count())));
    absmax.resize(static_cast<size_t>(quant::block_count(w.count(), kBlock)));
    kernels::reference::table().quantize_4bit(
        {}, {w.data(), w.dtype(), w.count(), kBlock, &book, packed.data(), absmax.data()});
    view.values = absmax.data();
    if (!is_nested) return;
    nested = quant::compress_absmax(absmax);
    view = {nullptr, nested.codes.data(), nested.absmax.data(), quant::kDynamicSigned.data(), nested.offset};
  }
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  const quant::CodeBook4Bit& code_book;
  int64_t rows, cols;
  std::vector<uint8_t> packed;
  std::vector<float> absmax;
  quant::NestedAbsmax nested;
  kernels::Absmax view;
};

/// The weight as fp32 values, and for each how far off the library's may be: where y lies within 2 ulp of a threshold,
/// it may have taken the neighbouring code (tests/parity/code_allowance.h).
struct Decoded {
  std::vector<float> values;
  std::vector<float> doubt;
};

Decoded decode(const Weight& weight, const Tensor& original) {
  const auto count = static_cast<size_t>(weight.rows * weight.cols);
  Decoded decoded{std::vector<float>(count), std::vector<float>(count)};
  const auto& book = weight.code_book;
  kernels::reference::table().dequantize_4bit({}, {weight.packed.data(), weight.view, weight.rows * weight.cols, kBlock,
                                                   book.values.data(), decoded.values.data(), DType::f32});
  for (size_t i = 0; i < count; ++i) {
    const float absmax = weight.absmax[i / kBlock];
    const float y = at(original, static_cast<int64_t>(i)) * (1.0f / absmax);
    for (size_t t = 0; t < book.thresholds.size(); ++t)
      if (ulps_between(y, book.thresholds[t]) <= 2)
        decoded.doubt[i] = (book.values[book.code_of_rank[t + 1]] - book.values[book.code_of_rank[t]]) * absmax * 1.01f;
  }
  return decoded;
}

/// x . w in double from weights in fp32, with the sum of magnitudes that bounds every rounding.
struct Exact {
  double value = 0;
  double magnitude = 0;
  double doubt = 0;
};

std::vector<Exact> exact_product(const Decoded& w, const std::vector<float>& x, const std::vector<float>& bias) {
  const size_t cols = w.values.size() / bias.size();
  std::vector<Exact> result;
  for (size_t i = 0; i < x.size() / cols; ++i)
    for (size_t n = 0; n < bias.size(); ++n) {
      Exact exact{bias[n], std::fabs(bias[n]), 0};
      for (size_t c = 0; c < cols; ++c) {
        const double product = double{x[i * cols + c]} * double{w.values[n * cols + c]};
        exact.value += product;
        exact.magnitude += std::fabs(product);
        exact.doubt += std::fabs(double{x[i * cols + c]} * double{w.doubt[n * cols + c]});
      }
      result.push_back(exact);
    }
  return result;
}

/// "96x160.bf16.nf4.dq.M17".
struct Case {
  explicit Case(const std::string& case_name)
      : name(case_name),
        dtype(dtype_named(field(name, 1))),
        code_book(field(name, 2) == "nf4" ? quant::kNf4 : quant::kFp4),
        is_nested(field(name, 3) == "dq"),
        m(std::stoll(name.substr(name.rfind('M') + 1))) {}
  std::string name;
  DType dtype;
  const quant::CodeBook4Bit& code_book;
  bool is_nested;
  int64_t m;
};

struct Errors {
  double ours = 0;
  double theirs = 0;
  int64_t equal = 0;
  int64_t count = 0;
};

/// Runs one case: every output within the roundings of both sides; returns the summed distances from the exact product.
Errors check(const Golden& golden, const Case& c) {
  const Tensor original = golden.get("w." + field(c.name, 0) + "." + field(c.name, 1));
  const Weight weight(original, c.code_book, c.is_nested);
  const std::vector<float> x = widened(golden.get(c.name + ".x"));
  const std::vector<float> bias = widened(golden.get(c.name + ".bias"));
  const std::vector<float> expected = widened(golden.get(c.name + ".y"));
  std::vector<float> y(expected.size());
  const kernels::MatmulInput input{x.data(), c.m, weight.cols, c.dtype};
  const kernels::Matmul4BitJob job{weight.packed.data(),      weight.view, kBlock,
                                   c.code_book.values.data(), weight.rows, {y.data(), weight.rows, bias.data()}};
  kernels::reference::table().matmul_4bit({}, input, &job, 1);

  const std::vector<Exact> exact = exact_product(decode(weight, original), x, bias);
  const double u = unit_roundoff(c.dtype);
  Errors errors;
  for (size_t i = 0; i < y.size(); ++i) {
    // Both sides round each weight and the library the output; sums of 160 products in fp32 are far below that.
    const double bound =
        exact[i].doubt + (2 * u + 200 * 0x1p-24) * exact[i].magnitude + 2 * u * std::fabs(exact[i].value);
    EXPECT_LE(std::fabs(double{y[i]} - double{expected[i]}), bound) << c.name << " output " << i;
    if (exact[i].doubt > 0) continue;
    errors.ours += std::fabs(double{round_to(c.dtype, y[i])} - exact[i].value);
    errors.theirs += std::fabs(double{expected[i]} - exact[i].value);
    errors.equal += round_to(c.dtype, y[i]) == expected[i] ? 1 : 0;
    ++errors.count;
  }
  return errors;
}

TEST(CudaMatmul4Bit, AgreesUpToRounding) {
  const Golden golden("bitsandbytes_cuda/matmul_4bit.safetensors");
  int checked = 0;
  Errors total;
  for (const std::string& name : golden.cases(".y")) {
    const Case c(name);
    const Errors errors = check(golden, c);
    ++checked;
    if (c.dtype == DType::f32) continue;
    total.ours += errors.ours;
    total.theirs += errors.theirs;
    total.equal += errors.equal;
    total.count += errors.count;
  }
  EXPECT_EQ(checked, 96);
  EXPECT_LE(total.ours, 1.001 * total.theirs);
  EXPECT_GT(total.equal, total.count * 99 / 100) << total.count;
}

}  // namespace
}  // namespace nibble::parity
