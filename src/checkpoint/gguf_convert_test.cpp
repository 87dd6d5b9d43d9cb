// Conversion of small GGUF models against what transformers reads from them.
#include "checkpoint/gguf_convert.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/cancel.h"
#include "base/json.h"
#include "checkpoint/checkpoint_samples_test.h"
#include "checkpoint/gguf_config.h"
#include "checkpoint/gguf_tokenizer.h"

namespace nibble {
namespace {

using samples::error_of;
namespace fs = std::filesystem;

fs::path gguf_path(const std::string& name) { return fs::path(NIBBLE_TEST_DATA) / "gguf" / name; }

// A GGUF file of texts, numbers and F32 tensors, in memory.
class Sample {
 public:
  Sample& text(const std::string& key, const std::string& value) {
    ++values_;
    put_text(metadata_, key);
    put(metadata_, uint32_t{8});
    put_text(metadata_, value);
    return *this;
  }
  Sample& integer(const std::string& key, uint32_t value) { return scalar(key, 4, value); }
  Sample& number(const std::string& key, float value) { return scalar(key, 6, value); }
  Sample& texts(const std::string& key, const std::vector<std::string>& items) {
    ++values_;
    put_text(metadata_, key);
    put(metadata_, uint32_t{9});
    put(metadata_, uint32_t{8});
    put(metadata_, uint64_t{items.size()});
    for (const auto& item : items) put_text(metadata_, item);
    return *this;
  }
  Sample& tensor(const std::string& name, const Shape& shape, std::vector<float> data) {
    ++tensors_;
    put_text(infos_, name);
    put(infos_, static_cast<uint32_t>(shape.size()));
    for (size_t i = shape.size(); i-- > 0;) put(infos_, static_cast<uint64_t>(shape[i]));
    put(infos_, uint32_t{0});
    put(infos_, uint64_t{data_.size()});
    data.resize((data.size() + 7) / 8 * 8);
    data_.append(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float));
    return *this;
  }
  Sample& model(const std::string& architecture = "llama") {
    text("general.architecture", architecture)
        .integer(architecture + ".context_length", 64)
        .integer(architecture + ".embedding_length", 256);
    integer(architecture + ".block_count", 1).integer(architecture + ".feed_forward_length", 8);
    integer(architecture + ".attention.head_count", 2)
        .number(architecture + ".attention.layer_norm_rms_epsilon", 1e-6f);
    return number(architecture + ".rope.freq_base", 500000.0f)
        .tensor("token_embd.weight", {2, 256}, std::vector<float>(512));
  }
  Sample& tokenizer(const std::string& pre = "gpt-2") {
    return text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", {"a", "b", "ab"});
  }
  std::shared_ptr<const GgufFile> parse() {
    file_ = "GGUF";
    put(file_, uint32_t{3});
    put(file_, tensors_);
    put(file_, values_);
    file_ += metadata_ + infos_;
    file_.resize((file_.size() + 31) / 32 * 32);
    file_ += data_;
    return GgufFile::parse(std::as_bytes(std::span(file_)), "sample");
  }

 private:
  template <typename T>
  static void put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void put_text(std::string& out, const std::string& text) {
    put(out, uint64_t{text.size()});
    out += text;
  }
  template <typename T>
  Sample& scalar(const std::string& key, uint32_t type, T value) {
    ++values_;
    put_text(metadata_, key);
    put(metadata_, type);
    put(metadata_, value);
    return *this;
  }
  uint64_t values_ = 0, tensors_ = 0;
  std::string metadata_, infos_, data_, file_;
};

// Converts and compares every tensor, bit by bit, with what transformers loads from the same file.
fs::path expect_converts(const std::string& name) {
  const fs::path out = samples::make_directory("convert_" + name);
  std::vector<uint64_t> steps;
  const auto progress = [&](std::string_view, uint64_t done, uint64_t total) {
    EXPECT_LE(done, total);
    steps.push_back(done);
  };
  convert_gguf_file(GgufFile::open(gguf_path(name + ".gguf")), out, DType::bf16, progress);
  EXPECT_GT(steps.size(), 2u);
  const auto found = Checkpoint::open(out), expected = Checkpoint::open(gguf_path(name + ".golden"));
  EXPECT_EQ(found->tensors().size(), expected->tensors().size());
  for (const auto& info : expected->tensors()) {
    const Tensor left = expected->get(info.name), right = found->get(info.name);
    EXPECT_EQ(left.shape(), right.shape()) << info.name;
    EXPECT_EQ(std::memcmp(left.data(), right.data(), left.bytes().size()), 0) << info.name;
  }
  return out;
}

TEST(GgufConvert, LlamaWithSentencePiece) {
  const fs::path out = expect_converts("tiny_llama");
  const Json config = read_json(out / "config.json");
  EXPECT_EQ(config["architectures"][0], "LlamaForCausalLM");
  EXPECT_EQ(config["num_key_value_heads"], 2);
  EXPECT_EQ(config["head_dim"], 8);
  EXPECT_EQ(config["rms_norm_eps"], 1e-5);
  EXPECT_EQ(config["tie_word_embeddings"], false);
  EXPECT_EQ(config["vocab_size"], 600);
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  const Json tokenizer = read_json(out / "tokenizer.json");
  EXPECT_EQ(tokenizer["model"]["merges"], read_json(gguf_path("tiny_llama.merges.json")));
  EXPECT_EQ(tokenizer["model"]["unk_token"], "<unk>");
  EXPECT_EQ(tokenizer["model"]["vocab"].size(), 600u);
  EXPECT_EQ(tokenizer["added_tokens"].size(), 3u);
  EXPECT_EQ(tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
  EXPECT_EQ(tokenizer["normalizer"]["normalizers"].size(), 2u);
  EXPECT_EQ(read_json(out / "generation_config.json")["eos_token_id"], 2);
}

TEST(GgufConvert, Qwen2WithByteLevelBpe) {
  const fs::path out = expect_converts("tiny_qwen2");
  const Json config = read_json(out / "config.json");
  EXPECT_EQ(config["architectures"][0], "Qwen2ForCausalLM");
  EXPECT_EQ(config["tie_word_embeddings"], true);
  const Json tokenizer = read_json(out / "tokenizer.json");
  EXPECT_EQ(tokenizer["normalizer"]["type"], "NFC");
  EXPECT_EQ(tokenizer["model"]["merges"][2], Json({"\u0120", "the"}));
  EXPECT_EQ(tokenizer["model"]["vocab"]["<|start|>"], 1);
  EXPECT_EQ(tokenizer["added_tokens"][0]["special"], true);
  EXPECT_EQ(tokenizer["added_tokens"][2]["content"], "<think>");
  EXPECT_EQ(tokenizer["added_tokens"][2]["special"], false);
  EXPECT_TRUE(tokenizer["post_processor"].is_null());
  const Json settings = read_json(out / "tokenizer_config.json");
  EXPECT_EQ(settings["chat_template"], "{{ messages[0]['content'] }}");
  EXPECT_EQ(settings["eos_token"], "<|end|>");
  EXPECT_EQ(settings["added_tokens_decoder"]["2"]["content"], "<think>");
}

TEST(GgufConvert, UsedInPlaceGivesTheSame) {
  const GgufModel model = open_gguf_model(gguf_path("tiny_llama.gguf"), DType::bf16);
  const auto expected = Checkpoint::open(gguf_path("tiny_llama.golden"));
  EXPECT_EQ(model.checkpoint->size_bytes(), expected->size_bytes());
  for (const auto& info : expected->tensors()) {
    const Tensor left = expected->get(info.name), right = model.checkpoint->get(info.name);
    EXPECT_EQ(std::memcmp(left.data(), right.data(), left.bytes().size()), 0) << info.name;
    EXPECT_EQ(model.checkpoint->find(info.name)->size_bytes, info.size_bytes);
    model.checkpoint->release(info.name);
  }
  EXPECT_EQ(model.config["model_type"], "llama");
  EXPECT_EQ(parse_json(model.tokenizer_json, "tokenizer.json")["version"], "1.0");
  EXPECT_EQ(Checkpoint::open(gguf_path("tiny_llama.gguf"))->tensors().size(), expected->tensors().size());
  error_of([&] { model.checkpoint->get("nowhere"); }, ErrorCode::not_found);
}

TEST(GgufConvert, CancelledBetweenTensors) {
  const fs::path out = samples::make_directory("convert_cancelled");
  const auto cancel = [](std::string_view, uint64_t, uint64_t) { request_cancel(); };
  error_of([&] { convert_gguf_file(GgufFile::open(gguf_path("tiny_llama.gguf")), out, DType::bf16, cancel); },
           ErrorCode::cancelled);
  reset_cancel();
}

TEST(GgufConfig, RopeScalings) {
  Sample plain;
  EXPECT_TRUE(gguf_config(*plain.model().parse(), DType::bf16)["rope_scaling"].is_null());
  Sample linear;
  linear.model().text("llama.rope.scaling.type", "linear").number("llama.rope.scaling.factor", 4.0f);
  EXPECT_EQ(gguf_config(*linear.parse(), DType::bf16)["rope_scaling"]["factor"], 4.0);
  Sample yarn;
  yarn.model().text("llama.rope.scaling.type", "yarn").number("llama.rope.scaling.factor", 4.0f);
  yarn.integer("llama.rope.scaling.original_context_length", 32768);
  EXPECT_EQ(gguf_config(*yarn.parse(), DType::bf16)["rope_scaling"]["original_max_position_embeddings"], 32768);
  Sample longrope;
  longrope.model().text("llama.rope.scaling.type", "longrope").number("llama.rope.scaling.factor", 4.0f);
  EXPECT_NE(error_of([&] { gguf_config(*longrope.parse(), DType::bf16); }, ErrorCode::unsupported).find("longrope"),
            std::string::npos);
}

// The divisors of Llama 3.2 (head size 128 here), as its published rule gives them.
TEST(GgufConfig, RopeFactorsOfLlama3) {
  std::vector<float> factors;
  for (int i = 0; i < 64; ++i) {
    const double wavelength = 2 * 3.141592653589793 * std::pow(500000.0, i / 64.0);
    const double smooth = (8192 / wavelength - 1) / 3;
    factors.push_back(static_cast<float>(wavelength < 2048   ? 1
                                         : wavelength > 8192 ? 32
                                                             : 1 / ((1 - smooth) / 32 + smooth)));
  }
  Sample llama3;
  llama3.model().tensor("rope_freqs.weight", {64}, factors);
  const Json scaling = gguf_config(*llama3.parse(), DType::bf16)["rope_scaling"];
  EXPECT_EQ(scaling["rope_type"], "llama3");
  EXPECT_EQ(scaling["factor"], 32.0);
  Sample ones;
  ones.model().tensor("rope_freqs.weight", {64}, std::vector<float>(64, 1.0f));
  EXPECT_TRUE(gguf_config(*ones.parse(), DType::bf16)["rope_scaling"].is_null());
  factors[40] *= 1.1f;
  Sample other;
  other.model().tensor("rope_freqs.weight", {64}, factors);
  error_of([&] { gguf_config(*other.parse(), DType::bf16); }, ErrorCode::unsupported);
  Sample wrong_size;
  wrong_size.model().tensor("rope_freqs.weight", {3}, {1, 1, 1});
  error_of([&] { gguf_config(*wrong_size.parse(), DType::bf16); }, ErrorCode::corrupt_file);
}

TEST(GgufConfig, SlidingWindowMeansMistral) {
  Sample sample;
  sample.model().integer("llama.attention.sliding_window", 4096);
  const Json config = gguf_config(*sample.parse(), DType::bf16);
  EXPECT_EQ(config["architectures"][0], "MistralForCausalLM");
  EXPECT_EQ(config["sliding_window"], 4096);
}

TEST(GgufConfig, WhatIsNotSupportedIsNamed) {
  const auto refused = [](Sample& sample, ErrorCode code) {
    return error_of([&] { gguf_checkpoint(sample.parse(), DType::bf16); }, code);
  };
  Sample architecture;
  EXPECT_NE(refused(architecture.model("mamba"), ErrorCode::unsupported).find("'mamba'"), std::string::npos);
  Sample expert;
  expert.model().tensor("blk.0.ffn_gate_exps.weight", {2, 256}, std::vector<float>(512));
  EXPECT_NE(refused(expert, ErrorCode::unsupported).find("ffn_gate_exps"), std::string::npos);
  Sample heads;
  heads.model().tensor("blk.0.attn_q.weight", {100, 8}, std::vector<float>(800));
  EXPECT_NE(refused(heads, ErrorCode::corrupt_file).find("attn_q"), std::string::npos);
  Sample twice;
  twice.model().tensor("blk.1.attn_v.weight", {1}, {1}).tensor("blk.01.attn_v.weight", {1}, {1});
  EXPECT_NE(refused(twice, ErrorCode::corrupt_file).find("blk.01"), std::string::npos);
  Sample theta;
  theta.model().number("llama.rope.scaling.factor", -1.0f);
  error_of([&] { gguf_config(*theta.parse(), DType::bf16); }, ErrorCode::corrupt_file);
  Sample nothing;
  error_of([&] { gguf_config(*nothing.parse(), DType::bf16); }, ErrorCode::corrupt_file);
}

TEST(GgufTokenizer, WhatIsNotSupportedIsNamed) {
  Sample good;
  good.model().tokenizer().texts("tokenizer.ggml.merges", {"a b"});
  EXPECT_EQ(parse_json(gguf_tokenizer_json(*good.parse()), "tokenizer.json")["model"]["merges"].size(), 1u);
  const auto refused = [](Sample& sample, ErrorCode code) {
    return error_of([&] { gguf_tokenizer_json(*sample.parse()); }, code);
  };
  Sample pre;
  EXPECT_NE(refused(pre.model().tokenizer("strange"), ErrorCode::unsupported).find("'strange'"), std::string::npos);
  Sample merges;
  EXPECT_NE(refused(merges.model().tokenizer(), ErrorCode::corrupt_file).find("merges"), std::string::npos);
  Sample unknown_merge;
  unknown_merge.model().tokenizer().texts("tokenizer.ggml.merges", {"a c"});
  EXPECT_NE(refused(unknown_merge, ErrorCode::corrupt_file).find("'a c'"), std::string::npos);
  Sample twice;
  twice.text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", {"a", "a"});
  EXPECT_NE(refused(twice, ErrorCode::corrupt_file).find("twice"), std::string::npos);
  Sample model;
  model.text("tokenizer.ggml.model", "bert").texts("tokenizer.ggml.tokens", {"a"});
  EXPECT_NE(refused(model, ErrorCode::unsupported).find("'bert'"), std::string::npos);
  Sample outside;
  outside.model().tokenizer().texts("tokenizer.ggml.merges", {}).integer("tokenizer.ggml.bos_token_id", 3);
  EXPECT_NE(refused(outside, ErrorCode::corrupt_file).find("bos_token_id"), std::string::npos);
}

}  // namespace
}  // namespace nibble
