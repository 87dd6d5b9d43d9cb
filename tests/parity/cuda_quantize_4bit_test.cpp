// quantize_4bit, dequantize_4bit and double quantization against bitsandbytes on CUDA, byte by byte.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "base/json.h"
#include "code_allowance.h"
#include "golden.h"
#include "kernels/reference/table.h"
#include "quant/double_quant.h"

namespace nibble::parity {
namespace {

const kernels::Kernels& reference() { return kernels::reference::table(); }

/// "randn33x50.bf16.nf4.bs64", with ".dq" when nested.
struct Case {
  explicit Case(const std::string& case_name)
      : name(case_name),
        input("in." + field(name, 0) + "." + field(name, 1)),
        quant_type(field(name, 2)),
        code_book(quant_type == "nf4" ? quant::kNf4 : quant::kFp4),
        block(std::stoll(field(name, 3).substr(2))) {}
  std::string name;
  std::string input;
  std::string quant_type;
  const quant::CodeBook4Bit& code_book;
  int64_t block;
};

struct Quantized {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;
};

Quantized quantize(const Tensor& x, const Case& c) {
  Quantized result;
  result.packed.resize(static_cast<size_t>(quant::packed_size_bytes(x.count())));
  result.absmax.resize(static_cast<size_t>(quant::block_count(x.count(), c.block)));
  reference().quantize_4bit(
      {}, {x.data(), x.dtype(), x.count(), c.block, &c.code_book, result.packed.data(), result.absmax.data()});
  return result;
}

Json state_of(const Golden& golden, const Case& c) {
  const Tensor& text = golden.get(c.name + ".quant_state.bitsandbytes__" + c.quant_type);
  return parse_json({text.as<char>(), static_cast<size_t>(text.count())}, c.name);
}

class CudaQuantize4Bit : public testing::Test {
 protected:
  Golden golden_{"bitsandbytes_cuda/quantize_4bit.safetensors"};
};

TEST_F(CudaQuantize4Bit, CodesAndAbsmaxAreTheSameBytes) {
  int64_t elements = 0;
  int64_t at_threshold = 0;
  for (const std::string& name : golden_.cases(".packed")) {
    const Case c(name);
    const Tensor x = golden_.get(c.input);
    const Tensor packed = golden_.get(name + ".packed");
    const Tensor absmax = golden_.get(name + ".absmax");
    const Quantized ours = quantize(x, c);
    ASSERT_EQ(packed.count(), static_cast<int64_t>(ours.packed.size())) << name;
    EXPECT_EQ(differences(absmax, Tensor::view(DType::f32, absmax.shape(), ours.absmax.data(), nullptr)), 0) << name;
    const CodeDifferences found =
        compare_codes_4bit(x, c.block, c.code_book, ours.absmax, ours.packed.data(), packed.as<uint8_t>());
    EXPECT_EQ(found.wrong, 0) << name;
    if (x.count() % 2 == 1) {
      EXPECT_EQ(ours.packed.back() & 15, packed.as<uint8_t>()[packed.count() - 1] & 15) << name << ": padding";
    }
    elements += x.count();
    at_threshold += found.at_threshold;
  }
  EXPECT_GT(elements, 300000);
  EXPECT_LE(at_threshold, 20) << "of " << elements;
}

TEST_F(CudaQuantize4Bit, DequantizesToTheSameBytes) {
  int checked = 0;
  for (const std::string& name : golden_.cases(".dequantized")) {
    const Case c(name);
    const Tensor expected = golden_.get(name + ".dequantized");
    kernels::Absmax absmax;
    if (golden_.has(name + ".nested_absmax")) {
      absmax.codes = golden_.get(name + ".absmax").as<uint8_t>();
      absmax.nested_absmax = golden_.get(name + ".nested_absmax").as<float>();
      absmax.nested_code_book = golden_.get("nested_quant_map").as<float>();
      absmax.offset = get_value<float>(state_of(golden_, c), "nested_offset", name);
    } else {
      absmax.values = golden_.get(name + ".absmax").as<float>();
    }
    const std::string packed = (name.ends_with(".dq") ? name.substr(0, name.size() - 3) : name) + ".packed";
    Tensor out(expected.dtype(), expected.shape());
    reference().dequantize_4bit({}, {golden_.get(packed).as<uint8_t>(), absmax, out.count(), c.block,
                                     c.code_book.values.data(), out.data(), out.dtype()});
    EXPECT_EQ(differences(out, expected), 0) << name;
    ++checked;
  }
  EXPECT_GT(checked, 60);
}

TEST_F(CudaQuantize4Bit, CompressesAbsmaxToTheSameBytes) {
  int checked = 0;
  int64_t at_threshold = 0;
  for (const std::string& name : golden_.cases(".nested_absmax")) {
    const Case c(name);
    const Tensor absmax = golden_.get(name.substr(0, name.size() - 3) + ".absmax");
    const std::span<const float> values(absmax.as<float>(), static_cast<size_t>(absmax.count()));
    const float offset = get_value<float>(state_of(golden_, c), "nested_offset", name);
    EXPECT_LE(ulps_between(quant::mean_offset(values), offset), 1) << name;
    const quant::NestedAbsmax ours = quant::compress_absmax(values, offset);
    const Tensor nested = golden_.get(name + ".nested_absmax");
    EXPECT_EQ(differences(nested, Tensor::view(DType::f32, nested.shape(), ours.absmax.data(), nullptr)), 0) << name;
    std::vector<float> d(values.size());
    for (size_t i = 0; i < d.size(); ++i) d[i] = values[i] - offset;
    const CodeDifferences found = compare_codes_8bit(d, quant::kNestedBlock, quant::kDynamicSigned.data(), ours.absmax,
                                                     ours.codes.data(), golden_.get(name + ".absmax").as<uint8_t>());
    EXPECT_EQ(found.wrong, 0) << name;
    at_threshold += found.at_threshold;
    ++checked;
  }
  EXPECT_EQ(checked, 54);
  EXPECT_EQ(at_threshold, 0);
}

TEST_F(CudaQuantize4Bit, TablesAreTheOnesThatFilesHold) {
  for (const auto& [name, values] :
       {std::pair{"quant_map.nf4", quant::kNf4.quant_map}, std::pair{"quant_map.fp4", quant::kFp4.quant_map}})
    EXPECT_EQ(differences(golden_.get(name), Tensor::view(DType::f32, {16}, values.data(), nullptr)), 0) << name;
  EXPECT_EQ(differences(golden_.get("nested_quant_map"),
                        Tensor::view(DType::f32, {256}, quant::kDynamicSigned.data(), nullptr)),
            0);
}

}  // namespace
}  // namespace nibble::parity
