// Every kind of tokenizer against the ids of the real libraries (tests/parity/make_tokenizer_goldens.py), and bad
// files.
#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/output.h"
#include "tokenizer/incremental_decoder.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/tiktoken.h"

namespace nibble {
namespace {

const std::string kData = std::string(NIBBLE_TEST_DATA) + "/tokenizer/";

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line, '\n');) lines.push_back(line);
  return lines;
}

/// The texts of lines.txt, in which \\ \n \r are escaped.
std::vector<std::string> texts() {
  std::vector<std::string> result;
  for (const std::string& line : split_lines(read_file(kData + "lines.txt"))) {
    std::string text;
    for (size_t i = 0; i < line.size(); ++i) {
      const bool escaped = line[i] == '\\' && i + 1 < line.size();
      const char c = escaped ? line[++i] : line[i];
      text += escaped && c == 'n' ? '\n' : escaped && c == 'r' ? '\r' : c;
    }
    result.push_back(text);
  }
  return result;
}

std::string fnv(const std::string& text) {
  uint64_t value = 0xCBF29CE484222325u;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return fmt::format("{:016x}", value);
}

std::string join(const std::vector<int32_t>& ids) { return fmt::format("{}", fmt::join(ids, " ")); }

std::string decode_step_by_step(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                                const DecodeOptions& options) {
  IncrementalDecoder decoder(tokenizer, options);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

class TokenizerJson : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerJson, GivesTheIdsAndTextOfTheRealLibrary) {
  const auto tokenizer = Tokenizer::load(kData + GetParam() + ".json");
  const auto lines = texts();
  const auto golden = split_lines(read_file(kData + GetParam() + ".golden"));
  ASSERT_EQ(lines.size(), golden.size());
  ASSERT_GE(lines.size(), 100u);
  for (size_t i = 0; i < lines.size(); ++i) {
    const auto ids = tokenizer->encode(lines[i], {});
    const std::string text = tokenizer->decode(ids, {});
    EXPECT_EQ(fnv(text) + (ids.empty() ? "" : " ") + join(ids), golden[i]) << lines[i];
    EXPECT_EQ(decode_step_by_step(*tokenizer, ids, {}), text) << lines[i];
    const DecodeOptions plain{.skip_special_tokens = true};
    EXPECT_EQ(decode_step_by_step(*tokenizer, ids, plain), tokenizer->decode(ids, plain)) << lines[i];
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerJson,
                         testing::Values("byte_level", "byte_fallback", "suffix", "unigram", "wordpiece", "wordlevel",
                                         "splits"),
                         [](const auto& info) { return std::string(info.param); });

class SentencePiece : public testing::TestWithParam<const char*> {};

TEST_P(SentencePiece, GivesTheIdsOfTheRealLibrary) {
  const auto tokenizer = Tokenizer::load(kData + GetParam() + ".model");
  const auto lines = texts();
  const auto golden = split_lines(read_file(kData + GetParam() + ".golden"));
  ASSERT_EQ(lines.size(), golden.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    // The library does not look for control pieces in a text.
    const std::string text = lines[i].find("<s>") == std::string::npos ? lines[i] : "";
    const auto ids = tokenizer->encode(text, {.add_special_tokens = false});
    EXPECT_EQ(fnv("") + (ids.empty() ? "" : " ") + join(ids), golden[i]) << text;
  }
  EXPECT_EQ(tokenizer->encode("a", {}).front(), tokenizer->token_to_id("<s>"));
}

INSTANTIATE_TEST_SUITE_P(Kinds, SentencePiece, testing::Values("sentencepiece_bpe", "sentencepiece_unigram"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Tokenizer, KnowsItsTokens) {
  const auto tokenizer = Tokenizer::load(kData + "byte_level.json");
  const auto mask = tokenizer->token_to_id("<mask>");
  ASSERT_TRUE(mask);
  EXPECT_TRUE(tokenizer->is_special(*mask));
  EXPECT_FALSE(tokenizer->is_special(tokenizer->token_to_id("WORD").value()));
  EXPECT_EQ(tokenizer->id_to_token(*mask), "<mask>");
  EXPECT_FALSE(tokenizer->id_to_token(tokenizer->vocab_size()));
  EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{tokenizer->vocab_size()}, {}), Error);
  EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{-1}, {}), Error);
}

TEST(Tokenizer, HoldsIncompleteCharactersBack) {
  const auto tokenizer = Tokenizer::load(kData + "byte_level.json");
  const auto ids = tokenizer->encode("\xF0\x90\x8D\x88!", {.add_special_tokens = false});
  IncrementalDecoder decoder(*tokenizer, {});
  std::vector<std::string> parts;
  for (const int32_t id : ids) parts.push_back(decoder.push(id));
  for (const std::string& part : parts) EXPECT_EQ(part.find("\xEF\xBF\xBD"), std::string::npos);
  EXPECT_EQ(fmt::format("{}", fmt::join(parts, "")), " \xF0\x90\x8D\x88!");
  ASSERT_GE(ids.size(), 4u);
  for (size_t i = 0; i + 2 < ids.size(); ++i) decoder.push(ids[i]);
  EXPECT_TRUE(decoder.finish().ends_with("\xEF\xBF\xBD"));
}

std::string model_json(const std::string& model, const std::string& rest = "") {
  return R"({"added_tokens":[],"model":)" + model + rest + "}";
}

TEST(Tokenizer, RefusesBrokenFiles) {
  const auto code_of = [](const std::string& text) {
    try {
      Tokenizer::from_json(text, "test")->encode("aaaa aaaa", {});
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::internal;
  };
  const std::string bpe = R"({"type":"BPE","vocab":{"a":0,"b":1},"merges":[]})";
  EXPECT_EQ(code_of(""), ErrorCode::corrupt_file);
  EXPECT_EQ(code_of("{}"), ErrorCode::corrupt_file);
  EXPECT_EQ(code_of(model_json(R"({"type":"BPE"})")), ErrorCode::corrupt_file);
  EXPECT_EQ(code_of(model_json(R"({"type":"Magic","vocab":{}})")), ErrorCode::unsupported);
  EXPECT_EQ(code_of(model_json(R"({"type":"BPE","vocab":{"a":0},"merges":["a b"]})")), ErrorCode::corrupt_file);
  EXPECT_EQ(code_of(model_json(R"({"type":"BPE","vocab":{"a":0},"merges":["a"]})")), ErrorCode::corrupt_file);
  EXPECT_EQ(code_of(model_json(R"({"type":"BPE","vocab":{"a":99999999999},"merges":[]})")), ErrorCode::corrupt_file);
  EXPECT_EQ(code_of(model_json(R"({"type":"BPE","vocab":{"a":-1},"merges":[]})")), ErrorCode::corrupt_file);
  EXPECT_EQ(code_of(model_json(R"({"type":"Unigram","unk_id":9,"vocab":[["a",0.0]]})")), ErrorCode::corrupt_file);
  EXPECT_EQ(code_of(model_json(R"({"type":"WordLevel","unk_token":"?","vocab":{"b":0}})")), ErrorCode::corrupt_file);
  EXPECT_EQ(code_of(model_json(bpe, R"(,"normalizer":{"type":"Magic"})")), ErrorCode::unsupported);
  EXPECT_EQ(code_of(model_json(bpe, R"(,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"("}})")),
            ErrorCode::corrupt_file);
  const std::string endless =
      R"(,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"((a+)+)+$b"},"behavior":"Isolated"})";
  EXPECT_EQ(code_of(model_json(bpe, endless)), ErrorCode::internal);  // no match, found quickly
  EXPECT_EQ(code_of("{\"model\":\"\xFF\"}"), ErrorCode::corrupt_file);
}

TEST(Tokenizer, StopsCatastrophicPatterns) {
  const std::string text = R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"Split",
      "pattern":{"Regex":"(a+)+c"},"behavior":"Isolated"}})";
  const auto tokenizer = Tokenizer::from_json(text, "test");
  EXPECT_THROW(tokenizer->encode(std::string(60, 'a') + "bc", {}), Error);
}

std::string tekken_json(const std::string& size, const std::string& specials) {
  return R"({"config":{"pattern":"\\S+|\\s+","default_vocab_size":)" + size + R"(,"default_num_special_tokens":)" +
         specials +
         R"(},"vocab":[{"rank":0,"token_bytes":"YQ=="},{"rank":1,"token_bytes":"Yg=="},{"rank":2,"token_bytes":"YWI="}]})";
}

TEST(Tekken, ReadsRanksBehindTheSpecialTokens) {
  const Pipeline tokenizer(read_tekken(tekken_json("23", "20"), "test"));
  const auto ids = tokenizer.encode("abba<s>", {});
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 22, 21, 20, 1}));
  EXPECT_EQ(tokenizer.decode(ids, {}), "<s>abba<s>");
}

// Special tokens are made from their number alone: a file of 200 bytes took 420 MB and more than a second.
TEST(Tekken, RefusesMoreTokensThanItsBytesCanMean) {
  EXPECT_THROW((void)read_tekken(tekken_json("1000000", "999990"), "test"), Error);
  EXPECT_THROW((void)read_tekken(tekken_json("8000000", "1000"), "test"), Error);
  EXPECT_THROW((void)read_tekken(tekken_json("10", "20"), "test"), Error);
  EXPECT_THROW((void)read_tekken(tekken_json("-1", "-2"), "test"), Error);
}

TEST(Tokenizer, FindsNoFile) {
  try {
    Tokenizer::load("no/such/model");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::not_found);
  }
}

}  // namespace
}  // namespace nibble
