// Plans: monotone in every size, and about what the documents' rule of thumb says.
#include "nibble/plan.h"

#include <gtest/gtest.h>

#include "base/folder_case.h"
#include "base/random.h"
#include "nibble/train.h"
#include "tensor/tensor.h"

namespace nibble {
namespace {

TEST(Plan, SevenBillionParametersFollowTheRuleOfThumb) {
  const Plan dense = plan(int64_t{7'000'000'000}, {.memory_bytes = int64_t{12} << 30});
  EXPECT_NEAR(double(dense.weights_bytes), 14e9, 0.1e9);
  EXPECT_FALSE(dense.fits);
  ASSERT_EQ(dense.levels.size(), 4u);
  EXPECT_NEAR(double(dense.levels[1].weights_bytes), 7e9, 0.5e9);
  EXPECT_NEAR(double(dense.levels[2].weights_bytes), 7e9 * 4.5 / 8, 0.5e9);
  EXPECT_LT(dense.levels[3].weights_bytes, dense.levels[2].weights_bytes);
  EXPECT_TRUE(dense.levels[3].fits);
}

TEST(Plan, GrowsWithContextAndBatch) {
  const PlanOptions small{.context = 1024}, large{.context = 2048, .batch_size = 4};
  EXPECT_EQ(plan(int64_t{1'000'000'000}, large).kv_cache_bytes, 8 * plan(int64_t{1'000'000'000}, small).kv_cache_bytes);
  EXPECT_THROW(plan(int64_t{-1}), Error);
  EXPECT_THROW(plan(int64_t{1000}, {.context = 0}), Error);
}

/// Bytes that fine-tuning the tiny model takes beside its weights.
int64_t measured_training(const TrainingPlanOptions& options) {
  AutoModelForCausalLM model = AutoModelForCausalLM::from_pretrained(
      std::string(NIBBLE_TEST_DATA) + "/models/llama", {.dtype = DType::f32, .device_map = "cpu", .threads = 1});
  Random random(1);
  Dataset data;
  for (int64_t i = 0; i < 2 * options.per_device_train_batch_size; ++i) {
    Dataset::Sample sample;
    for (int64_t t = 0; t < options.max_length; ++t) sample.ids.push_back(static_cast<int32_t>(random.next() % 90));
    sample.is_target.assign(sample.ids.size(), true);
    sample.is_target[0] = false;
    data.samples.push_back(std::move(sample));
  }
  TrainingArguments arguments;
  const Scratch scratch;
  arguments.output_dir = scratch.path;
  arguments.max_steps = 2;  // the second has optimizer states, its second batch gradients from the start
  arguments.gradient_accumulation_steps = 2;
  arguments.per_device_train_batch_size = options.per_device_train_batch_size;
  arguments.optim = options.optim;
  arguments.gradient_checkpointing = options.gradient_checkpointing;
  arguments.save_steps = 0;
  reset_tensor_peak();
  const int64_t before = tensor_memory().allocated_bytes;
  Trainer(model, options.lora, arguments, data).train();
  return tensor_memory().peak_bytes - before;
}

TEST(TrainingPlan, IsWhatTrainingTakes) {
  for (const bool checkpointing : {false, true})
    for (const int64_t batch : {1, 4})
      for (const int64_t length : {32, 60})
        for (const char* optim : {"adamw_torch", "adamw_8bit"}) {
          TrainingPlanOptions options{.dtype = DType::f32, .optim = optim, .max_length = length};
          options.per_device_train_batch_size = batch;
          options.gradient_checkpointing = checkpointing;
          options.lora.r = 4;
          options.lora.lora_dropout = 0.05;
          const TrainingPlan plan = plan_training(std::string(NIBBLE_TEST_DATA) + "/models/llama", options);
          const auto planned = double(plan.total_bytes - plan.weights_bytes - plan.workspace_bytes);
          const auto measured = double(measured_training(options));
          EXPECT_NEAR(planned, measured, 0.1 * measured)
              << batch << " x " << length << (checkpointing ? " checkpointing " : " ") << optim;
        }
}

TrainingPlanOptions t4(int64_t length, bool checkpointing, bool nested = false) {
  TrainingPlanOptions options;
  options.quantization_config = {
      .load_in_4bit = true, .bnb_4bit_quant_type = "nf4", .bnb_4bit_use_double_quant = nested};
  options.lora.r = 16;
  options.max_length = length;
  options.per_device_train_batch_size = 1;
  options.gradient_checkpointing = checkpointing;
  options.is_gpu = true;
  options.has_bf16 = false;
  options.memory_bytes = int64_t{15} << 30;
  return options;
}

/// The documents' runs on one T4 of 16 GB, batch 1, with AdamW: every one that fits there, and 13B at 1024 without
/// nested quantization, which did not.
TEST(TrainingPlan, FitsWhereverItDidOnAT4) {
  const int64_t small = 7'000'000'000, large = 13'000'000'000;
  TrainingPlanOptions int8 = t4(512, true);
  int8.quantization_config = {.load_in_8bit = true};
  EXPECT_TRUE(plan_training(small, int8).fits);
  EXPECT_TRUE(plan_training(small, t4(512, false)).fits);
  EXPECT_TRUE(plan_training(small, t4(1024, true)).fits);
  EXPECT_TRUE(plan_training(large, t4(512, true)).fits);
  EXPECT_TRUE(plan_training(large, t4(1024, true, true)).fits);
  EXPECT_TRUE(plan_training(large, t4(1024, true)).fits);
  EXPECT_TRUE(plan_training(large, t4(2048, true, true)).fits);
}

TEST(TrainingPlan, OffloadedInputsWaitInMainMemory) {
  TrainingPlanOptions options = t4(40000, true, true);
  options.has_bf16 = true;
  const TrainingPlan kept = plan_training(int64_t{7'000'000'000}, options);
  EXPECT_FALSE(kept.fits);
  ASSERT_EQ(kept.ways.front().change, "--activation-offloading");
  EXPECT_TRUE(kept.ways.front().fits);
  options.activation_offloading = true;
  const TrainingPlan offloaded = plan_training(int64_t{7'000'000'000}, options);
  EXPECT_EQ(offloaded.total_bytes, kept.ways.front().total_bytes);
  EXPECT_GT(offloaded.host_bytes, kept.kept_bytes * 9 / 10);
  options.gradient_checkpointing = false;
  EXPECT_THROW(plan_training(int64_t{7'000'000'000}, options), Error);
}

TEST(TrainingPlan, NamesWhatMakesItFit) {
  TrainingPlanOptions options = t4(2048, false);
  options.per_device_train_batch_size = 4;
  const TrainingPlan plan = plan_training(int64_t{13'000'000'000}, options);
  EXPECT_FALSE(plan.fits);
  ASSERT_EQ(plan.ways.size(), 5u);
  EXPECT_EQ(plan.ways[0].change, "--bnb-4bit-use-double-quant");
  EXPECT_EQ(plan.ways[1].change, "--gradient-checkpointing");
  for (const TrainingPlanWay& way : plan.ways) EXPECT_LT(way.total_bytes, plan.total_bytes) << way.change;
  EXPECT_EQ(plan.ways.back().change, "all of these");
  EXPECT_TRUE(plan.ways.back().fits);
  options.optim = "no_such";
  EXPECT_THROW(plan_training(int64_t{7'000'000'000}, options), Error);
}

}  // namespace
}  // namespace nibble
