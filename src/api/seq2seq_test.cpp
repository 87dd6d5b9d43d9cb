// AutoModelForSeq2SeqLM on tiny T5s: generation as transformers, files written and read back, what stays in float32.
#include "nibble/seq2seq.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "base/folder_case.h"
#include "checkpoint/checkpoint.h"
#include "nibble/checkpoint.h"
#include "nibble/plan.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = fs::path(NIBBLE_TEST_DATA) / "models";
const char* const kNames[] = {"t5", "t5-gated"};

std::vector<int32_t> ids(const std::string& model, const std::string& name) {
  const Tensor tensor = Checkpoint::open(kModels / model / "seq2seq.safetensors")->get(name);
  return {tensor.as<int32_t>(), tensor.as<int32_t>() + tensor.count()};
}

AutoModelForSeq2SeqLM load(const fs::path& path, std::optional<DType> dtype = DType::f32,
                           const BitsAndBytesConfig& config = {}) {
  return AutoModelForSeq2SeqLM::from_pretrained(path, {.quantization_config = config, .dtype = dtype, .threads = 2});
}

std::string dtype_of(const ModelSummary& summary, const std::string& module) {
  for (const ModuleInfo& info : summary.modules)
    if (info.name == module) return info.dtype;
  return "no such module";
}

TEST(Seq2SeqModel, GeneratesAsTransformers) {
  for (const std::string name : kNames) {
    SCOPED_TRACE(name);
    auto model = load(kModels / name);
    const auto source = ids(name, "source"), lengths = ids(name, "batch_lengths");
    EXPECT_EQ(model.decoder_start_token_id(), 0);
    const auto greedy = model.generate(source, {.max_new_tokens = 32, .eos_token_id = {-1}});
    EXPECT_EQ(greedy[0], ids(name, "greedy"));
    EXPECT_EQ(greedy.times.prompt_tokens, 48);
    EXPECT_EQ(model.generate(source, {.max_new_tokens = 16, .num_beams = 3})[0], ids(name, "beams"));
    std::vector<std::vector<int32_t>> sources;
    for (const int32_t length : lengths) sources.emplace_back(source.begin(), source.begin() + length);
    const auto batch = model.generate(sources, {.max_new_tokens = 16, .eos_token_id = {-1}});
    std::vector<int32_t> all;
    for (const auto& row : batch.sequences) all.insert(all.end(), row.begin(), row.end());
    EXPECT_EQ(all, ids(name, "batch_greedy"));
    const auto beams = model.generate(sources, {.max_new_tokens = 16, .num_beams = 3});
    EXPECT_EQ(beams[2], ids(name, "beams"));  // a row does not depend on its neighbours
    const GenerationConfig sampled{.max_new_tokens = 16, .do_sample = true, .seed = 3};
    EXPECT_EQ(model.generate(source, sampled)[0], model.generate(source, sampled)[0]);
  }
}

TEST(Seq2SeqModel, FilesHoldWhatIsInMemory) {
  for (const std::string name : kNames)
    for (const bool is_int8 : {false, true})
      for (const bool has_quantized_head : {false, true}) {
        SCOPED_TRACE(name + (is_int8 ? " int8" : " nf4") + (has_quantized_head ? " with head" : ""));
        Scratch quantized, saved;
        saved.path += "_saved";
        BitsAndBytesConfig config{.load_in_8bit = is_int8, .load_in_4bit = !is_int8, .bnb_4bit_quant_type = "nf4"};
        if (has_quantized_head) config.llm_int8_skip_modules.emplace();
        auto model = load(kModels / name, DType::f16, config);
        EXPECT_EQ(dtype_of(model.summary(), "encoder.block.0.layer.1.DenseReluDense.wo"), "float32");
        EXPECT_EQ(dtype_of(model.summary(), "shared"), "float16");
        quantize_checkpoint(kModels / name, quantized.path, {.quantization_config = config, .dtype = DType::f16});
        model.save_pretrained(saved.path);
        const auto source = ids(name, "source"), target = ids(name, "target");
        const auto expected = model.logits(source, target);
        for (const fs::path& path : {quantized.path, saved.path}) {
          auto again = load(path, std::nullopt);
          EXPECT_EQ(again.logits(source, target), expected);
          EXPECT_EQ(again.get_memory_footprint(), model.get_memory_footprint());
          EXPECT_EQ(Checkpoint::open(path)->find("lm_head.weight") != nullptr, name != "t5" || has_quantized_head);
        }
      }
}

TEST(Seq2SeqModel, DequantizedIsPlainAgain) {
  Scratch quantized, plain;
  plain.path += "_plain";
  quantize_checkpoint(kModels / "t5", quantized.path, {.quantization_config = {.load_in_8bit = true}});
  dequantize_checkpoint(quantized.path, plain.path, DType::f16);
  EXPECT_EQ(Checkpoint::open(plain.path)->find("decoder.block.0.layer.2.DenseReluDense.wo.weight")->dtype, DType::f32);
  EXPECT_EQ(load(plain.path, DType::f32).num_parameters(), load(kModels / "t5").num_parameters());
}

TEST(Seq2SeqModel, KindsAreToldApart) {
  EXPECT_TRUE(is_encoder_decoder(kModels / "t5"));
  EXPECT_FALSE(is_encoder_decoder(kModels / "llama"));
  const auto message = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::unsupported);
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message([] { AutoModelForCausalLM::from_pretrained(kModels / "t5"); }).find("AutoModelForSeq2SeqLM"),
            std::string::npos);
  EXPECT_NE(message([] { load(kModels / "llama"); }).find("AutoModelForCausalLM"), std::string::npos);
}

TEST(Seq2SeqModel, PlanCountsTheSourceToo) {
  const Plan small = plan(kModels / "t5", {.context = 100}), large = plan(kModels / "t5", {.context = 200});
  EXPECT_EQ(small.kv_cache_bytes, 1 * 2 * 2 * 100 * 48 * 2);  // layers, both attentions, keys and values, bfloat16
  EXPECT_EQ(large.kv_cache_bytes, 2 * small.kv_cache_bytes);
}

}  // namespace
}  // namespace nibble
