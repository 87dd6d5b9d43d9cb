// AutoTokenizer: special tokens, chat templates and errors, from directories and GGUF files.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/output.h"
#include "nibble/tokenizer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizer = R"({"added_tokens":[{"id":0,"content":"<s>","special":true},
  {"id":1,"content":"</s>","special":true}],"model":{"type":"WordLevel","unk_token":"<unk>",
  "vocab":{"<s>":0,"</s>":1,"<unk>":2,"a":3,"\u00e9\"":4}}})";

class AutoTokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) /
                 ("auto_tokenizer_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    write("tokenizer.json", kTokenizer);
  }
  void write(const char* name, const std::string& text) { write_file(directory_ / name, text); }
  AutoTokenizer open() const { return AutoTokenizer::from_pretrained(directory_); }
  std::string render() const {
    const std::vector<ChatMessage> messages = {{"user", "hi"}};
    return open().apply_chat_template(messages);
  }
  ErrorCode error() const {
    try {
      open();
    } catch (const Error& error) {
      return error.code();
    }
    ADD_FAILURE() << "no error";
    return ErrorCode::internal;
  }
  fs::path directory_;
};

TEST_F(AutoTokenizerTest, FindsSpecialTokensByTextBeforeIds) {
  write("tokenizer_config.json", R"({"bos_token":"<s>","eos_token":{"content":"</s>"},"pad_token":null})");
  write("generation_config.json", R"({"bos_token_id":3,"eos_token_id":[2,1],"pad_token_id":4})");
  const AutoTokenizer tokenizer = open();
  EXPECT_EQ(tokenizer.bos_token_id(), 0);
  EXPECT_EQ(tokenizer.eos_token_id(), 1);
  EXPECT_EQ(tokenizer.pad_token_id(), 4);
  EXPECT_EQ(tokenizer.vocab_size(), 5);
  EXPECT_EQ(tokenizer.token_to_id("\u00e9\""), 4);
}

TEST_F(AutoTokenizerTest, FallsBackToIdsOfTheConfigs) {
  write("special_tokens_map.json", R"({"pad_token":"a"})");
  write("generation_config.json", R"({"eos_token_id":[2,1]})");
  write("config.json", R"({"bos_token_id":3,"eos_token_id":0})");
  const AutoTokenizer tokenizer = open();
  EXPECT_EQ(tokenizer.bos_token_id(), 3);
  EXPECT_EQ(tokenizer.eos_token_id(), 2);
  EXPECT_EQ(tokenizer.pad_token_id(), 3);
}

TEST_F(AutoTokenizerTest, HasNoTokensWithoutConfigs) {
  const AutoTokenizer tokenizer = open();
  EXPECT_FALSE(tokenizer.bos_token_id());
  EXPECT_FALSE(tokenizer.eos_token_id());
  EXPECT_FALSE(tokenizer.has_chat_template());
  EXPECT_EQ(tokenizer.encode("a"), std::vector<int32_t>{3});
}

TEST_F(AutoTokenizerTest, ReadsChatTemplatesOfEveryForm) {
  write("tokenizer_config.json",
        R"({"bos_token":"<s>","chat_template":"{{ bos_token }}{{ messages[0].role }}:{{ messages[0].content }}"})");
  EXPECT_EQ(render(), "<s>user:hi");
  write("tokenizer_config.json", R"({"chat_template":[{"name":"tool_use","template":"no"},
      {"name":"default","template":"{% if add_generation_prompt %}go{% endif %}"}]})");
  EXPECT_EQ(render(), "go");
  write("chat_template.jinja", "{{ messages | length }}");
  EXPECT_EQ(render(), "1");
}

TEST_F(AutoTokenizerTest, ReportsABrokenTemplateWhenItIsUsed) {
  write("tokenizer_config.json", R"({"chat_template":"{% if %}"})");
  EXPECT_TRUE(open().has_chat_template());
  EXPECT_THROW(render(), Error);
  EXPECT_EQ(open().encode("a"), std::vector<int32_t>{3});
}

TEST_F(AutoTokenizerTest, NamesWhatIsMissingOrBroken) {
  write("tokenizer_config.json", R"({"bos_token":7})");
  EXPECT_EQ(error(), ErrorCode::corrupt_file);
  write("tokenizer_config.json", "{");
  EXPECT_EQ(error(), ErrorCode::corrupt_file);
  fs::remove(directory_ / "tokenizer_config.json");
  for (const char* broken : {R"({"model":{"type":"BPE","vocab":{"a":0}}})", R"({"model":{"type":"WordLevel"}})",
                             R"({"model":{"vocab":{"a":0,}}})", R"({"model":{"vocab":{"a":-1}}})"}) {
    write("tokenizer.json", broken);
    EXPECT_EQ(error(), ErrorCode::corrupt_file) << broken;
  }
  fs::remove(directory_ / "tokenizer.json");
  EXPECT_EQ(error(), ErrorCode::not_found);
}

TEST_F(AutoTokenizerTest, OpensGgufFiles) {
  const auto tokenizer = AutoTokenizer::from_pretrained(fs::path(NIBBLE_TEST_DATA) / "gguf" / "tiny_llama.gguf");
  ASSERT_TRUE(tokenizer.bos_token_id());
  ASSERT_TRUE(tokenizer.eos_token_id());
  EXPECT_EQ(tokenizer.token_to_id("<s>"), tokenizer.bos_token_id());
  EXPECT_EQ(tokenizer.token_to_id("</s>"), tokenizer.eos_token_id());
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("hello"), {.skip_special_tokens = true}), "hello");
}

TEST_F(AutoTokenizerTest, ReportsMissingAndBrokenGgufFiles) {
  write("broken.gguf", "no GGUF");
  EXPECT_THROW(AutoTokenizer::from_pretrained(directory_ / "broken.gguf"), Error);
  EXPECT_THROW(AutoTokenizer::from_pretrained(directory_ / "missing.gguf"), Error);
}

}  // namespace
}  // namespace nibble
