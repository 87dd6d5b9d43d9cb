// Models on a GPU against the same on the CPU, and against themselves in other batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "api/implementation.h"
#include "device/cuda.h"
#include "generate/generator.h"
#include "models/tiny_models.h"
#include "nibble/model.h"
#include "nibble/seq2seq.h"
#include "runtime/session.h"

namespace nibble {
namespace {

const std::filesystem::path kModels = std::filesystem::path(NIBBLE_TEST_DATA) / "models";

std::vector<int32_t> prompt_of(int64_t length, int32_t seed) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back((i * 37 + seed * 11 + 3) % 97);
  return ids;
}

class GpuModel : public ::testing::Test {
 protected:
  void SetUp() override {
    const device::CudaSupport support = device::describe_cuda();
    if (!support.missing.empty()) GTEST_SKIP() << support.missing;
  }
  static AutoModelForCausalLM load(const std::string& name, const std::string& device, DType dtype,
                                   const BitsAndBytesConfig& config = {}) {
    LoadOptions options;
    options.device_map = device;
    options.dtype = dtype;
    options.quantization_config = config;
    return AutoModelForCausalLM::from_pretrained(kModels / name, options);
  }
  /// ||found - expected|| / ||expected|| of all logits of a prompt.
  static double logit_error(const std::string& name, DType dtype, const BitsAndBytesConfig& config) {
    AutoModelForCausalLM cpu = load(name, "cpu", dtype, config), gpu = load(name, "cuda", dtype, config);
    EXPECT_EQ(gpu.hf_device_map().at(""), "cuda:0");
    EXPECT_GT(gpu.peak_device_bytes(), 0);
    const auto prompt = prompt_of(std::min<int64_t>(60, cpu.max_position_embeddings()), 1);
    return distance(cpu.logits(prompt), gpu.logits(prompt));
  }
  static double distance(const std::vector<float>& expected, const std::vector<float>& found) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      difference += std::pow(double{found[i]} - double{expected[i]}, 2);
      size += std::pow(double{expected[i]}, 2);
    }
    return std::sqrt(difference / size);
  }
};

const std::vector<std::string> kArchitectures = models::testing::causal_models();

TEST_F(GpuModel, LogitsAgreeInFloat32) {
  for (const std::string& name : kArchitectures) EXPECT_LT(logit_error(name, DType::f32, {}), 2e-4) << name;
}

// The CPU keeps fp32 between kernels, a GPU bf16; where experts are chosen, a choice may flip.
TEST_F(GpuModel, LogitsAgreeInBfloat16) {
  for (const std::string& name : kArchitectures)
    EXPECT_LT(logit_error(name, DType::bf16, {}), name == "mixtral" ? 8e-2 : 3e-2) << name;
}

TEST_F(GpuModel, QuantizedLogitsAgree) {
  for (const std::string& name : kArchitectures)
    for (const char* type : {"nf4", "fp4"})
      for (const bool nested : {false, true}) {
        const BitsAndBytesConfig config{
            .load_in_4bit = true, .bnb_4bit_quant_type = type, .bnb_4bit_use_double_quant = nested};
        EXPECT_LT(logit_error(name, DType::f32, config), 2e-3) << name << " " << type << " " << nested;
      }
  for (const std::string& name : kArchitectures)
    EXPECT_LT(logit_error(name, DType::f32, {.load_in_8bit = true}), 2e-2) << name;
}

TEST_F(GpuModel, StoredQuantizedWeightsAgree) {
  for (const char* name : {"llama-nf4-dq", "llama-int8"}) EXPECT_LT(logit_error(name, DType::bf16, {}), 5e-2) << name;
}

TEST_F(GpuModel, CachesOfCodesAreClose) {
  for (const char* name : {"llama", "qwen3", "gpt2", "bloom", "gemma2", "mistral-window"}) {
    LoadOptions options;
    options.device_map = "cuda";
    options.dtype = DType::bf16;
    AutoModelForCausalLM wide = AutoModelForCausalLM::from_pretrained(kModels / name, options);
    options.kv_cache_dtype = "int8";
    AutoModelForCausalLM narrow = AutoModelForCausalLM::from_pretrained(kModels / name, options);
    const double error = distance(wide.logits(prompt_of(60, 1)), narrow.logits(prompt_of(60, 1)));
    EXPECT_LT(error, 3e-2) << name;
    EXPECT_GT(error, 0) << name;
    const GenerationConfig config{.max_new_tokens = 40, .eos_token_id = {-1}};
    EXPECT_EQ(narrow.generate(prompt_of(9, 2), config)[0], narrow.generate(prompt_of(9, 2), config)[0]) << name;
  }
  LoadOptions options;
  options.kv_cache_dtype = "int4";
  EXPECT_THROW(AutoModelForCausalLM::from_pretrained(kModels / "llama", options), Error);
}

TEST_F(GpuModel, EncoderDecodersAgree) {
  for (const char* name : {"t5", "t5-gated"})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const auto load_seq2seq = [&](const char* device) {
        LoadOptions options;
        options.device_map = device;
        options.dtype = dtype;
        return AutoModelForSeq2SeqLM::from_pretrained(kModels / name, options);
      };
      AutoModelForSeq2SeqLM cpu = load_seq2seq("cpu"), gpu = load_seq2seq("cuda");
      EXPECT_EQ(cpu.hf_device_map().at(""), "cpu");
      EXPECT_EQ(gpu.hf_device_map().at(""), "cuda:0");
      const std::vector<int32_t> source = prompt_of(40, 1), target = prompt_of(12, 3);
      EXPECT_LT(distance(cpu.logits(source, target), gpu.logits(source, target)), dtype == DType::f32 ? 2e-4 : 0.1)
          << name;
      const GenerationConfig config{.max_new_tokens = 30, .eos_token_id = {-1}};
      if (dtype == DType::f32) {
        EXPECT_EQ(cpu.generate(source, config)[0], gpu.generate(source, config)[0]) << name;
      }
    }
}

TEST_F(GpuModel, GreedyTextIsThatOfTheCpu) {
  for (const char* name : {"llama", "qwen3", "gpt2", "bloom"}) {
    AutoModelForCausalLM cpu = load(name, "cpu", DType::f32), gpu = load(name, "cuda", DType::f32);
    const GenerationConfig config{.max_new_tokens = 50, .eos_token_id = {-1}};
    EXPECT_EQ(cpu.generate(prompt_of(9, 2), config)[0], gpu.generate(prompt_of(9, 2), config)[0]) << name;
  }
}

/// Prompts of several lengths in windows; and where all that was computed is computed anew once texts are long.
TEST_F(GpuModel, TextOfBatchesIsThatOfTheCpu) {
  for (const char* name : {"mistral-window", "qwen2-window", "gemma3", "phi3-longrope", "llama-dynamic"}) {
    AutoModelForCausalLM cpu = load(name, "cpu", DType::f32), gpu = load(name, "cuda", DType::f32);
    const GenerationConfig config{.max_new_tokens = 50, .eos_token_id = {-1}};
    const std::vector<std::vector<int32_t>> prompts{prompt_of(9, 2), prompt_of(1, 3), prompt_of(20, 4),
                                                    prompt_of(cpu.max_position_embeddings() - 3, 5)};
    EXPECT_EQ(cpu.generate(prompts, config).sequences, gpu.generate(prompts, config).sequences) << name;
  }
}

TEST_F(GpuModel, TextDoesNotDependOnTheBatch) {
  for (const bool is_int8 : {false, true}) {
    BitsAndBytesConfig quantization{.load_in_8bit = is_int8, .load_in_4bit = !is_int8, .llm_int8_threshold = 0};
    quantization.bnb_4bit_quant_type = "nf4";
    quantization.bnb_4bit_use_double_quant = true;
    quantization.bnb_4bit_compute_dtype = DType::bf16;
    AutoModelForCausalLM model = load("qwen2", "cuda", DType::bf16, quantization);
    const GenerationConfig config{.max_new_tokens = 40, .eos_token_id = {-1}, .batch_invariant = true};
    std::vector<std::vector<int32_t>> prompts;
    for (int32_t i = 0; i < 16; ++i) prompts.push_back(prompt_of(3 + 2 * i, i));
    const auto sixteen = model.generate(prompts, config);
    EXPECT_EQ(sixteen.sequences, model.generate(prompts, config).sequences) << "run to run";
    const auto three = model.generate({prompts[0], prompts[1], prompts[2]}, config);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(sixteen[i], three[i]) << i;
      EXPECT_EQ(sixteen[i], model.generate(prompts[i], config)[0]) << i;
    }
  }
}

TEST_F(GpuModel, SamplingAndBeamsRun) {
  AutoModelForCausalLM cpu = load("llama", "cpu", DType::f32), gpu = load("llama", "cuda", DType::f32);
  const GenerationConfig sampled{.max_new_tokens = 20, .do_sample = true, .eos_token_id = {-1}, .seed = 5};
  EXPECT_EQ(cpu.generate(prompt_of(9, 2), sampled)[0], gpu.generate(prompt_of(9, 2), sampled)[0]);
  const GenerationConfig beams{.max_new_tokens = 20, .num_beams = 3, .eos_token_id = {-1}};
  EXPECT_EQ(cpu.generate(prompt_of(9, 2), beams)[0], gpu.generate(prompt_of(9, 2), beams)[0]);
}

/// A model whose logits all come back.
class WithoutSearch final : public TokenModel {
 public:
  explicit WithoutSearch(Session& session) : model_(session) {}
  std::span<const float> append(int64_t sequence, std::span<const int32_t> tokens) override {
    return model_.append(sequence, tokens);
  }
  std::span<const float> step(std::span<const int64_t> sequences, std::span<const int32_t> tokens) override {
    return model_.step(sequences, tokens);
  }
  void reorder(std::span<const int64_t> source) override { model_.reorder(source); }
  int64_t vocab_size() const override { return model_.vocab_size(); }

 private:
  SessionModel model_;
};

TEST_F(GpuModel, TokensSampledOnTheGpuAreThoseOfTheWholeLogits) {
  AutoModelForCausalLM model = load("llama", "cuda", DType::f32);
  const models::Decoder& decoder = *model.implementation().decoder;
  const std::vector<std::vector<int32_t>> prompts = {prompt_of(9, 2), prompt_of(4, 3), prompt_of(30, 4)};
  struct Choice {
    int64_t top_k;
    float top_p, min_p, penalty, temperature;
    bool do_sample;
  };
  for (const Choice& choice :
       {Choice{50, 1, 0, 1, 1, true}, Choice{5, 0.9f, 0, 1.2f, 0.7f, true}, Choice{0, 0.7f, 0, 0.9f, 1.3f, true},
        Choice{0, 1, 0.1f, 1.1f, 1, true}, Choice{0, 1, 0, 1, 1, true}, Choice{50, 1, 0, 1.3f, 1, false}}) {
    GenerationConfig config{.max_new_tokens = 40, .eos_token_id = {5, 6, 7}, .seed = 11};
    config.do_sample = choice.do_sample;
    config.temperature = choice.temperature;
    config.top_k = choice.top_k;
    config.top_p = choice.top_p;
    config.min_p = choice.min_p;
    config.repetition_penalty = choice.penalty;
    Session first(decoder, 3, 128, true), second(decoder, 3, 128, true);
    WithoutSearch whole(first);
    EXPECT_EQ(generate(whole, nullptr, prompts, config).sequences, generate(second, nullptr, prompts, config).sequences)
        << choice.top_k << " " << choice.top_p << " " << choice.min_p << " " << choice.penalty;
  }
}

TEST_F(GpuModel, AutoTakesTheGpuAndSaysSo) {
  LoadOptions options;
  std::string heard;
  options.notice = [&](std::string_view text) { heard = text; };
  const auto model = AutoModelForCausalLM::from_pretrained(kModels / "llama", options);
  EXPECT_EQ(model.hf_device_map().at(""), "cuda:0");
  EXPECT_NE(heard.find("cuda:0"), std::string::npos) << heard;
}

/// Lets a kernel of a model's GPU read where nothing is; then exits with 0 if all went as it should.
[[noreturn]] void survive_a_failing_gpu() {
  LoadOptions on_gpu, on_cpu;
  on_gpu.device_map = "cuda";
  on_cpu.device_map = "cpu";
  const std::vector<int32_t> prompt = prompt_of(9, 2);
  ErrorCode first = ErrorCode::internal, second = first;
  std::string message;
  {
    auto model = AutoModelForCausalLM::from_pretrained(kModels / "llama", on_gpu);
    model.generate(prompt);
    const ops::Backend& backend = model.implementation().decoder->backend();
    auto* nowhere = reinterpret_cast<float*>(uintptr_t{4096});
    backend.kernels().softcap(backend.context(), {nowhere, 100000, 1.0f});
    try {
      model.generate(prompt);
    } catch (const Error& error) {
      first = error.code();
      message = error.what();
    }
  }
  try {
    AutoModelForCausalLM::from_pretrained(kModels / "llama", on_gpu);
  } catch (const Error& error) {
    second = error.code();
  }
  const size_t tokens = AutoModelForCausalLM::from_pretrained(kModels / "llama", on_cpu).generate(prompt)[0].size();
  std::cerr << message << '\n';
  const bool is_named = message.find("cuda:0") != std::string::npos;
  std::exit(first == ErrorCode::device && second == ErrorCode::device && is_named && tokens > 9 ? 0 : 1);
}

TEST_F(GpuModel, AFailureOfTheGpuIsAnErrorAndTheProcessGoesOn) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // the GPU is lost to a process of its own
  EXPECT_EXIT(survive_a_failing_gpu(), ::testing::ExitedWithCode(0), "illegal memory access");
}

/// In 16 bits, norms take memory of their own whenever layers are bound anew.
TEST_F(GpuModel, AnAdapterWithoutRoomLeavesTheOneBefore) {
  const auto adapter = std::filesystem::path(NIBBLE_TEST_DATA) / "training" / "llama";
  AutoModelForCausalLM model = load("llama", "cuda", DType::bf16);
  model.load_adapter(adapter, "first");
  const std::vector<float> before = model.logits(prompt_of(20, 1));
  device::CudaStream& cuda = *model.implementation().decoder->backend().cuda();
  const auto expect_no_room = [&](const auto& change) {
    cuda.release_unused();
    cuda.limit_memory(1);
    try {
      change();
      ADD_FAILURE() << "found room";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::out_of_memory) << error.what();
    }
    cuda.limit_memory(0);
    EXPECT_EQ(model.active_adapter(), "first");
    EXPECT_EQ(model.logits(prompt_of(20, 1)), before);
  };
  expect_no_room([&] { model.disable_adapter(); });
  expect_no_room([&] { model.load_adapter(adapter, "second"); });
  model.load_adapter(adapter, "second");  // the name is free
  EXPECT_EQ(model.logits(prompt_of(20, 1)), before);
}

TEST_F(GpuModel, SavedFilesEqualThoseOfTheCpu) {
  const BitsAndBytesConfig config{
      .load_in_4bit = true, .bnb_4bit_quant_type = "nf4", .bnb_4bit_use_double_quant = true};
  const auto base = std::filesystem::temp_directory_path() / "nibble_gpu_test";
  std::filesystem::remove_all(base);
  std::filesystem::create_directories(base);
  std::vector<std::string> files;
  for (const char* device : {"cpu", "cuda"}) {
    load("llama", device, DType::bf16, config).save_pretrained(base / device);
    std::ifstream file(base / device / "model.safetensors", std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    EXPECT_GT(files.back().size(), 1000u);
  }
  EXPECT_TRUE(files[0] == files[1]);
  std::filesystem::remove_all(base);
}

TEST(Gpu, MissingOnesAreNamed) {
  LoadOptions options;
  options.device_map = "cuda:77";
  try {
    AutoModelForCausalLM::from_pretrained(kModels / "llama", options);
    FAIL() << "loaded onto a GPU that is not there";
  } catch (const Error& error) {
    EXPECT_TRUE(error.code() == ErrorCode::device || error.code() == ErrorCode::invalid_argument);
    EXPECT_NE(std::string(error.what()).find("cuda:77"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace nibble
