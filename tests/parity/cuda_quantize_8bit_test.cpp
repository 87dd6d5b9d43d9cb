// quantize_8bit and dequantize_8bit against bitsandbytes on CUDA, byte by byte.
#include <gtest/gtest.h>

#include <vector>

#include "code_allowance.h"
#include "golden.h"
#include "kernels/reference/table.h"

namespace nibble::parity {
namespace {

class CudaQuantize8Bit : public testing::Test {
 protected:
  Golden golden_{"bitsandbytes_cuda/quantize_blockwise.safetensors"};

  /// Case "square.bf16.bs64" was quantized with the unsigned map, all others with the signed one.
  static const float* code_book(const std::string& name) {
    return name.starts_with("square") ? quant::kDynamicUnsigned.data() : quant::kDynamicSigned.data();
  }
  static int64_t block(const std::string& name) { return std::stoll(field(name, 2).substr(2)); }
};

TEST_F(CudaQuantize8Bit, CodesAndAbsmaxAreTheSameBytes) {
  int64_t elements = 0;
  int64_t at_threshold = 0;
  for (const std::string& name : golden_.cases(".q")) {
    const Tensor x = golden_.get("in." + field(name, 0) + "." + field(name, 1));
    const Tensor absmax = golden_.get(name + ".absmax");
    std::vector<uint8_t> codes(static_cast<size_t>(x.count()));
    std::vector<float> ours(static_cast<size_t>(absmax.count()));
    kernels::reference::table().quantize_8bit(
        {}, {x.data(), x.dtype(), x.count(), block(name), code_book(name), codes.data(), ours.data()});
    EXPECT_EQ(differences(absmax, Tensor::view(DType::f32, absmax.shape(), ours.data(), nullptr)), 0) << name;
    std::vector<float> wide(codes.size());
    for (size_t i = 0; i < wide.size(); ++i) wide[i] = at(x, static_cast<int64_t>(i));
    const CodeDifferences found = compare_codes_8bit(wide, block(name), code_book(name), ours, codes.data(),
                                                     golden_.get(name + ".q").as<uint8_t>());
    EXPECT_EQ(found.wrong, 0) << name;
    elements += x.count();
    at_threshold += found.at_threshold;
  }
  EXPECT_GT(elements, 200000);
  EXPECT_LE(at_threshold, 3) << "of " << elements;
}

TEST_F(CudaQuantize8Bit, DequantizesToTheSameBytes) {
  int checked = 0;
  for (const std::string& name : golden_.cases(".dequantized")) {
    const Tensor expected = golden_.get(name + ".dequantized");
    Tensor out(expected.dtype(), expected.shape());
    kernels::reference::table().dequantize_8bit(
        {}, {golden_.get(name + ".q").as<uint8_t>(), golden_.get(name + ".absmax").as<float>(), out.count(),
             block(name), code_book(name), out.data(), out.dtype()});
    EXPECT_EQ(differences(out, expected), 0) << name;
    ++checked;
  }
  EXPECT_EQ(checked, 15);
}

TEST_F(CudaQuantize8Bit, MapsAreTheSameBytes) {
  for (const auto& [name, map] :
       {std::pair{"map.signed", &quant::kDynamicSigned}, std::pair{"map.unsigned", &quant::kDynamicUnsigned}})
    EXPECT_EQ(differences(golden_.get(name), Tensor::view(DType::f32, {256}, map->data(), nullptr)), 0) << name;
}

}  // namespace
}  // namespace nibble::parity
