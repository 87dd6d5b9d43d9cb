// The worked example of docs/formats/optimizer_state.md is true.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/output.h"
#include "checkpoint/checkpoint.h"
#include "format_page.h"
#include "nibble/optim.h"

namespace nibble::parity {
namespace {

class OptimizerPage : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<Example> examples = examples_of("optimizer_state.md");
    ASSERT_EQ(examples.size(), 2u);
    step_ = examples[0];
    file_ = examples[1];
    values_ = numbers(step_["values"]);
    const std::vector<float> gradient = numbers(step_["gradient"]);
    const TrainableParameter parameter{
        step_["name"], {static_cast<int64_t>(values_.size())}, values_.data(), DType::f32, gradient.data(), DType::f32};
    Optimizer optimizer(step_["optimizer"], {{{parameter}, {}}}, {.lr = 0.1, .min_8bit_size = 1});
    optimizer.step();
    optimizer.save(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::string codes(const std::string& name) const {
    const Tensor tensor = Checkpoint::open(path_)->get(kPrefix + name);
    return decimal(std::vector<int>(tensor.as<uint8_t>(), tensor.as<uint8_t>() + tensor.count()));
  }
  std::string floats(const std::string& name) const {
    const Tensor tensor = Checkpoint::open(path_)->get(kPrefix + name);
    return bits({tensor.as<float>(), tensor.as<float>() + tensor.count()});
  }

  const std::string kPrefix = "state.0.__bnb_optimizer_quant_state__.";
  const std::filesystem::path path_ = std::filesystem::path(testing::TempDir()) / "nibble_optimizer_page.safetensors";
  Example step_, file_;
  std::vector<float> values_;
};

TEST_F(OptimizerPage, AStepLeavesTheseBytes) {
  EXPECT_EQ(bits(values_), step_["parameter"]);
  EXPECT_EQ(codes("state1"), step_["state1"]);
  EXPECT_EQ(floats("absmax1"), step_["absmax1"]);
  EXPECT_EQ(codes("state2"), step_["state2"]);
  EXPECT_EQ(floats("absmax2"), step_["absmax2"]);
}

TEST_F(OptimizerPage, TheFileHasThisHeaderAndText) {
  const std::string bytes = read_file(path_);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  std::string header = bytes.substr(8, length);
  header.resize(header.find_last_not_of(' ') + 1);
  EXPECT_EQ(header, file_["header"]);
  const Tensor groups = Checkpoint::open(path_)->get("param_groups");
  EXPECT_EQ(std::string(groups.as<char>(), static_cast<size_t>(groups.count())), file_["param_groups"]);
  const Tensor step = Checkpoint::open(path_)->get("state.0.step");
  EXPECT_EQ(hex(step.data(), 8), file_["step"]);
}

}  // namespace
}  // namespace nibble::parity
