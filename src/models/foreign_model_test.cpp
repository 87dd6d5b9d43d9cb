// Which modules of an unknown model are quantized, and that what is written reads back.
#include "models/foreign_model.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "base/folder_case.h"
#include "checkpoint/quant_state.h"
#include "models/quantization.h"

namespace nibble::models {
namespace {

namespace fs = std::filesystem;

/// A checkpoint of zeros with the given tensors, in a directory that goes with it.
class Foreign {
 public:
  explicit Foreign(const std::vector<PlannedTensor>& tensors) {
    fs::create_directories(path() / "plain");
    SafetensorsWriter writer(path() / "plain", tensors, int64_t{1} << 30);
    for (const PlannedTensor& tensor : tensors) {
      Tensor data(tensor.dtype, tensor.shape);
      std::fill_n(data.as<char>(), data.size_bytes(), '\1');
      writer.write(tensor.name, data.bytes());
    }
    writer.finish();
  }
  std::shared_ptr<const Checkpoint> open(const char* folder = "plain") const {
    return Checkpoint::open(path() / folder);
  }
  const fs::path& path() const { return scratch_.path; }

 private:
  Scratch scratch_;
};

const std::vector<PlannedTensor> kVision{
    {"vit.embeddings.position_embeddings", DType::f32, {1, 17, 64}},
    {"vit.embeddings.position_ids", DType::i64, {17}},
    {"vit.embeddings.patch_embeddings.projection.weight", DType::f32, {64, 3, 8, 8}},
    {"vit.word_embeddings.weight", DType::f32, {100, 64}},
    {"vit.layer.0.attention.query.weight", DType::f32, {64, 64}},
    {"vit.layer.0.attention.query.bias", DType::f32, {64}},
    {"vit.layer.0.output.dense.weight", DType::f32, {64, 128}},
    {"classifier.weight", DType::f32, {2, 64}},
};

BitsAndBytesConfig four_bit() {
  BitsAndBytesConfig config;
  config.load_in_4bit = true;
  return config;
}

TEST(ForeignModel, LinearLayersAreToldByNameAndShape) {
  const Foreign model(kVision);
  const ForeignPlan plan = plan_foreign(*model.open(), four_bit(), {});
  EXPECT_EQ(plan.quantized, (std::vector<std::string>{"vit.layer.0.attention.query", "vit.layer.0.output.dense"}));
  EXPECT_EQ(plan.config.llm_int8_skip_modules, (std::vector<std::string>{"classifier", "vit.word_embeddings"}));
}

TEST(ForeignModel, ModulesChoose) {
  const Foreign model(kVision);
  EXPECT_EQ(plan_foreign(*model.open(), four_bit(), "classifier|.*query").quantized,
            (std::vector<std::string>{"classifier", "vit.layer.0.attention.query"}));
  EXPECT_THROW(plan_foreign(*model.open(), four_bit(), "query"), Error);  // the whole name must match
  EXPECT_THROW(plan_foreign(*model.open(), four_bit(), "(("), Error);
}

TEST(ForeignModel, SkipEntriesReplaceTheRules) {
  const Foreign model(kVision);
  BitsAndBytesConfig config = four_bit();
  config.llm_int8_skip_modules = {{"vit"}};
  EXPECT_EQ(plan_foreign(*model.open(), config, {}).quantized, (std::vector<std::string>{"classifier"}));
}

TEST(ForeignModel, OtherTensorsAreCopiedAsTheyAre) {
  const Foreign model(kVision);
  const auto checkpoint = model.open();
  const ForeignPlan plan = plan_foreign(*checkpoint, four_bit(), {});
  const ops::Backend backend(1);
  fs::create_directories(model.path() / "out");
  SafetensorsWriter writer(model.path() / "out", plan_foreign_tensors(*checkpoint, plan, DType::bf16),
                           int64_t{1} << 30);
  write_foreign(*checkpoint, plan, DType::bf16, backend, writer, {});
  writer.finish();
  const auto out = model.open("out");
  EXPECT_EQ(out->get("vit.embeddings.position_ids").dtype(), DType::i64);
  EXPECT_EQ(out->get("vit.word_embeddings.weight").dtype(), DType::bf16);
  const auto packed = find_4bit(*out, "vit.layer.0.output.dense.weight");
  ASSERT_TRUE(packed.has_value());
  EXPECT_EQ(packed->shape, (Shape{64, 128}));
  EXPECT_EQ(packed->dtype, DType::bf16);
}

}  // namespace
}  // namespace nibble::models
