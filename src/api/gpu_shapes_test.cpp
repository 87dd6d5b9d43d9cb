// Two layers of Llama-2-7B's shape on a GPU, with random weights: the kernels of whole models, other batches, memory.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "device/cuda.h"
#include "nibble/model.h"

namespace nibble {
namespace {

constexpr int64_t kGigabyte = int64_t{1} << 30;

const BitsAndBytesConfig kNested4Bit{.load_in_4bit = true,
                                     .bnb_4bit_compute_dtype = DType::bf16,
                                     .bnb_4bit_quant_type = "nf4",
                                     .bnb_4bit_use_double_quant = true};
const BitsAndBytesConfig kInt8{.load_in_8bit = true};

std::vector<int32_t> prompt_of(int64_t length, int32_t seed) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back((i * 137 + seed * 11 + 3) % 997);
  return ids;
}

class GpuShapes : public ::testing::Test {
 protected:
  void SetUp() override {
    const device::CudaSupport support = device::describe_cuda();
    if (!support.missing.empty()) GTEST_SKIP() << support.missing;
    const char* name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = std::filesystem::temp_directory_path() / ("nibble_gpu_shapes_" + std::string(name));
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ / "config.json") << R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
      "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 2,
      "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05,
      "vocab_size": 1000, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "dtype": "bfloat16"})";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  AutoModelForCausalLM load(const BitsAndBytesConfig& config, const char* device = "cuda",
                            DType dtype = DType::bf16) const {
    LoadOptions options;
    options.device_map = device;
    options.dtype = dtype;
    options.quantization_config = config;
    options.random_weights = true;
    return AutoModelForCausalLM::from_pretrained(folder_, options);
  }

  std::filesystem::path folder_;
};

TEST_F(GpuShapes, BatchInvariantTextIsTheSameInEveryBatch) {
  BitsAndBytesConfig often_outliers = kInt8;
  often_outliers.llm_int8_threshold = 2;
  for (const BitsAndBytesConfig& quantization : {kNested4Bit, kInt8, often_outliers, BitsAndBytesConfig{}}) {
    const std::string label = quantization.load_in_4bit ? "4 bits"
                              : quantization.load_in_8bit
                                  ? "threshold " + std::to_string(quantization.llm_int8_threshold)
                                  : "bf16";
    AutoModelForCausalLM model = load(quantization);
    const GenerationConfig config{.max_new_tokens = 24, .eos_token_id = {-1}, .batch_invariant = true};
    std::vector<std::vector<int32_t>> prompts;
    for (int32_t i = 0; i < 16; ++i) prompts.push_back(prompt_of(2 + i * 5 % 27, i));
    const auto sixteen = model.generate(prompts, config);
    EXPECT_EQ(sixteen.sequences, model.generate(prompts, config).sequences) << label << ", run to run";
    const auto three = model.generate({prompts[0], prompts[1], prompts[2]}, config);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(sixteen[i], three[i]) << label << ", prompt " << i;
      EXPECT_EQ(sixteen[i], model.generate(prompts[i], config)[0]) << label << ", prompt " << i;
    }
  }
}

TEST_F(GpuShapes, TextIsTheSameInEveryRun) {
  for (const BitsAndBytesConfig& quantization : {kNested4Bit, kInt8}) {
    AutoModelForCausalLM model = load(quantization);
    const GenerationConfig config{.max_new_tokens = 24, .eos_token_id = {-1}};
    for (const size_t batch : {1, 3, 16}) {
      std::vector<std::vector<int32_t>> prompts;
      for (size_t i = 0; i < batch; ++i) prompts.push_back(prompt_of(20, static_cast<int32_t>(i)));
      EXPECT_EQ(model.generate(prompts, config).sequences, model.generate(prompts, config).sequences) << batch;
    }
  }
}

/// One prompt, few and many rows of x: the kernels for each. In 8 bits the last bit of x decides some codes of the next
/// product; after a few products all roundings are others, and two runs differ by about twice the error of 8 bits.
TEST_F(GpuShapes, LogitsAreThoseOfTheCpu) {
  struct Case {
    const BitsAndBytesConfig& quantization;
    DType dtype;
    double error;
  };
  for (const auto& [quantization, dtype, error] :
       {Case{kNested4Bit, DType::bf16, 3e-2}, Case{kInt8, DType::bf16, 8e-2}, Case{kInt8, DType::f32, 2e-2}}) {
    AutoModelForCausalLM cpu = load(quantization, "cpu", dtype), gpu = load(quantization, "cuda", dtype);
    for (const int64_t length : {1, 5, 40, 150}) {
      const std::vector<float> expected = cpu.logits(prompt_of(length, 1)), found = gpu.logits(prompt_of(length, 1));
      ASSERT_EQ(expected.size(), found.size());
      double difference = 0, size = 0;
      for (size_t i = 0; i < expected.size(); ++i) {
        difference += std::pow(double{found[i]} - double{expected[i]}, 2);
        size += std::pow(double{expected[i]}, 2);
      }
      EXPECT_LT(std::sqrt(difference / size), error)
          << length << (quantization.load_in_8bit ? " in 8 bits, " : " in 4, ") << name_of(dtype);
    }
  }
}

TEST_F(GpuShapes, LoadingTakesTheResultAndLessThanALayer) {
  for (const BitsAndBytesConfig& quantization : {kNested4Bit, kInt8}) {
    AutoModelForCausalLM model = load(quantization);
    const int64_t held = model.get_memory_footprint() + model.summary().statistics_bytes;
    constexpr int64_t kLayer = 2 * (4 * int64_t{4096} * 4096 + 3 * int64_t{4096} * 11008);  // in bf16
    EXPECT_GE(model.peak_device_bytes(), held);
    EXPECT_LT(model.peak_device_bytes(), held + kLayer / 4);
  }
}

/// Nearly all of the memory is taken by someone else.
TEST_F(GpuShapes, WithoutRoomLoadingIsAnErrorWithNumbersAndWorksLater) {
  const auto stream = device::open_cuda(0);
  std::vector<std::shared_ptr<void>> taken;
  for (int64_t size = 64 * kGigabyte; size > kGigabyte / 8;) {
    try {
      taken.push_back(stream->allocate(size));
    } catch (const Error&) {
      size /= 2;
    }
  }
  try {
    load(kInt8);
    FAIL() << "loaded into memory that is taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::out_of_memory);
    for (const char* part : {"cuda:0", "bytes", "free"})
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
  taken.clear();
  stream->allocate(stream->description().memory_bytes / 2);  // cached blocks go back to the GPU
  EXPECT_EQ(load(kInt8).generate(prompt_of(9, 2), {.max_new_tokens = 4, .eos_token_id = {-1}})[0].size(), 13u);
}

TEST_F(GpuShapes, ACacheWithoutRoomIsAnErrorAndTheModelGoesOn) {
  AutoModelForCausalLM model = load(kNested4Bit);
  const GenerationConfig few{.max_new_tokens = 8, .eos_token_id = {-1}};
  const auto before = model.generate(prompt_of(9, 2), few).sequences;
  GenerationConfig many = few;
  many.max_new_tokens = 100000;  // 3.3 GB a sequence
  try {
    model.generate(std::vector<std::vector<int32_t>>(64, prompt_of(9, 2)), many);
    FAIL() << "a cache of 210 GB had room";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::out_of_memory) << error.what();
  }
  EXPECT_EQ(model.generate(prompt_of(9, 2), few).sequences, before);
}

}  // namespace
}  // namespace nibble
