// Generation over a scripted model: beams against transformers, ends, stop strings, streaming, cancellation.
#include "generate/generator.h"

#include <gtest/gtest.h>

#include "generate/scripted_model.h"
#include "generate/text_stream.h"

namespace nibble {
namespace {

using Table = ScriptedModel::Table;

TEST(Generator, GreedyAndBeamsAsTransformers) {
  const Json cases = read_json(std::string(NIBBLE_TEST_DATA) + "/generate/beams.json");
  ASSERT_GT(cases.size(), 100u);
  for (size_t i = 0; i < cases.size(); ++i) {
    const Json& entry = cases[i];
    GenerationConfig config;
    config.num_beams = entry.at("num_beams");
    config.length_penalty = entry.at("length_penalty");
    config.early_stopping = entry.at("early_stopping");
    config.max_new_tokens = entry.at("max_new_tokens");
    config.repetition_penalty = entry.at("repetition_penalty");
    config.eos_token_id = entry.at("eos_token_id").get<std::vector<int32_t>>();
    const auto prompts = entry.at("prompts").get<std::vector<std::vector<int32_t>>>();
    ScriptedModel model(entry.at("first").get<Table>(), entry.at("second").get<Table>(),
                        sequences_needed(prompts.size(), config));
    const GenerationOutput output = generate(model, nullptr, prompts, config);
    EXPECT_EQ(output.sequences, entry.at("sequences").get<std::vector<std::vector<int32_t>>>()) << "case " << i;
  }
}

/// Token i is the i-th letter; the last two are the halves of "é", which are no text on their own.
class LetterTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view, const EncodeOptions&) const override { return {}; }
  std::string decode(std::span<const int32_t> ids, const DecodeOptions&) const override {
    std::string text;
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool is_whole = ids[i] == 6 && i + 1 < ids.size() && ids[i + 1] == 7;
      text += is_whole ? "\xc3\xa9" : ids[i] >= 6 ? "\xef\xbf\xbd" : *id_to_token(ids[i]);
      i += is_whole ? 1 : 0;
    }
    return text;
  }
  DecodedRun decode_run(std::span<const int32_t> ids, const DecodeOptions& options, RunPosition) const override {
    return {decode(ids, options), ids.empty() || ids.back() != 6};
  }
  int32_t vocab_size() const override { return 8; }
  std::optional<int32_t> token_to_id(std::string_view) const override { return std::nullopt; }
  std::optional<std::string> id_to_token(int32_t id) const override {
    return std::string(1, "?abcde"[static_cast<size_t>(id)]);
  }
  bool is_special(int32_t) const override { return false; }
};

/// A model that says a b c d e and over again; `next` overrides what follows a token.
ScriptedModel alphabet(int64_t rows, std::vector<std::pair<size_t, size_t>> next = {}) {
  Table first(8, std::vector<float>(8, 0.0f));
  for (size_t i = 0; i < 8; ++i) first[i][i >= 1 && i < 5 ? i + 1 : 1] = 5.0f;
  for (const auto& [from, to] : next) first[from][to] = 9.0f;
  return ScriptedModel(first, Table(8, std::vector<float>(8, 0.0f)), rows);
}

TEST(Generator, EndsRowsOneByOne) {
  ScriptedModel model = alphabet(3);
  GenerationConfig config;
  config.max_new_tokens = 4;
  config.eos_token_id = {5};
  const GenerationOutput output = generate(model, nullptr, {{1, 2}, {3}, {5}}, config);
  EXPECT_EQ(output.sequences[0], (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(output.sequences[1], (std::vector<int32_t>{3, 4, 5}));
  EXPECT_EQ(output[2], (std::vector<int32_t>{5, 1, 2, 3, 4}));
  EXPECT_EQ(output.stop_reasons, (std::vector{StopReason::eos, StopReason::eos, StopReason::length}));
  EXPECT_EQ(output.times.prompt_tokens, 4);
  EXPECT_EQ(output.times.new_tokens, 9);
  EXPECT_EQ(model.steps, 3);
}

struct Heard {
  std::string text;
  std::vector<int32_t> tokens;
};

GenerationOutput listen(ScriptedModel& model, const GenerationConfig& config, std::vector<Heard>& heard,
                        const std::vector<std::vector<int32_t>>& prompts) {
  const LetterTokenizer tokenizer;
  heard.resize(prompts.size());
  return generate(model, &tokenizer, prompts, config, [&](int64_t row, int32_t token, std::string_view text) {
    heard[static_cast<size_t>(row)].text += text;
    heard[static_cast<size_t>(row)].tokens.push_back(token);
    return true;
  });
}

TEST(Generator, StopStringsAcrossTokensAreNeverHeard) {
  GenerationConfig config;
  config.max_new_tokens = 9;
  config.stop = {"dea", "bcx", "zz"};
  for (const int64_t beams : {1, 2}) {
    config.num_beams = beams;
    ScriptedModel model = alphabet(2 * beams);
    std::vector<Heard> heard;
    const GenerationOutput output = listen(model, config, heard, {{1}, {4}});
    EXPECT_EQ(output.texts, (std::vector<std::string>{"bc", "eabc"}));
    EXPECT_EQ(heard[0].text, "bc");
    EXPECT_EQ(heard[1].text, "eabc");
    EXPECT_EQ(heard[0].tokens, (std::vector<int32_t>{2, 3, 4, 5, 1}));
    EXPECT_EQ(output.sequences[0], (std::vector<int32_t>{1, 2, 3, 4, 5, 1}));
    EXPECT_EQ(output.stop_reasons[0], StopReason::stop_string);
  }
}

TEST(Generator, HeldBackTextComesAtTheEnd) {
  GenerationConfig config;
  config.max_new_tokens = 4;
  config.stop = {"dex"};
  ScriptedModel model = alphabet(1);
  std::vector<Heard> heard;
  EXPECT_EQ(listen(model, config, heard, {{1}}).texts[0], "bcde");
  EXPECT_EQ(heard[0].text, "bcde");
}

TEST(Generator, HalfCharactersWait) {
  GenerationConfig config;
  config.max_new_tokens = 4;
  ScriptedModel model = alphabet(1, {{2, 6}, {6, 7}, {7, 6}});
  const LetterTokenizer tokenizer;
  std::vector<std::string> pieces;
  const auto output = generate(model, &tokenizer, {{1}}, config, [&](int64_t, int32_t, std::string_view text) {
    pieces.emplace_back(text);
    return true;
  });
  EXPECT_EQ(pieces, (std::vector<std::string>{"b", "", "\xc3\xa9", "\xef\xbf\xbd"}));
  EXPECT_EQ(output.texts[0], "b\xc3\xa9\xef\xbf\xbd");
}

TEST(Generator, CallbackStopsItsRowOnly) {
  ScriptedModel model = alphabet(2);
  GenerationConfig config;
  config.max_new_tokens = 5;
  const auto output = generate(model, nullptr, {{1}, {1}}, config,
                               [](int64_t row, int32_t token, std::string_view) { return row == 0 || token != 3; });
  EXPECT_EQ(output.sequences[0].size(), 6u);
  EXPECT_EQ(output.sequences[1], (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(output.stop_reasons[1], StopReason::callback);
}

TEST(Generator, CancelThrowsAfterTheTokensWereHeard) {
  ScriptedModel model = alphabet(1);
  GenerationConfig config;
  config.max_new_tokens = 50;
  int heard = 0;
  try {
    generate(model, nullptr, {{1}}, config, [&](int64_t, int32_t, std::string_view) {
      if (++heard == 3) request_cancel();
      return true;
    });
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::cancelled);
  }
  reset_cancel();
  EXPECT_EQ(heard, 3);
}

TEST(Generator, RowsDoNotDependOnEachOther) {
  GenerationConfig config;
  config.do_sample = true;
  config.max_new_tokens = 20;
  config.temperature = 3.0f;
  config.seed = 7;
  ScriptedModel one = alphabet(1), three = alphabet(3);
  const auto alone = generate(one, nullptr, {{1, 2}}, config);
  const auto together = generate(three, nullptr, {{1, 2}, {3}, {4, 4, 4}}, config);
  EXPECT_EQ(alone.sequences[0], together.sequences[0]);
}

TEST(Generator, RefusesBadOptions) {
  ScriptedModel model = alphabet(1);
  const auto code = [&](auto change, std::vector<int32_t> prompt = {1}) {
    GenerationConfig config;
    change(config);
    try {
      generate(model, nullptr, {prompt}, config);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::internal;
  };
  const auto none = [](GenerationConfig&) {};
  EXPECT_EQ(code([](auto& c) { c.temperature = 0; }), ErrorCode::invalid_argument);
  EXPECT_EQ(code([](auto& c) { c.temperature = 1e-40f; }), ErrorCode::invalid_argument);  // logits would overflow
  EXPECT_EQ(code([](auto& c) { c.top_k = -1; }), ErrorCode::invalid_argument);
  EXPECT_EQ(code([](auto& c) { c.top_p = 0; }), ErrorCode::invalid_argument);
  EXPECT_EQ(code([](auto& c) { c.min_p = 1; }), ErrorCode::invalid_argument);
  EXPECT_EQ(code([](auto& c) { c.repetition_penalty = -1; }), ErrorCode::invalid_argument);
  EXPECT_EQ(code([](auto& c) { c.num_beams = 0; }), ErrorCode::invalid_argument);
  EXPECT_EQ(code([](auto& c) { c.stop = {"x"}; }), ErrorCode::invalid_argument);
  EXPECT_EQ(code([](auto& c) { c.stop = {""}; }), ErrorCode::invalid_argument);
  EXPECT_EQ(code([](auto& c) { c.num_beams = 2, c.do_sample = true; }), ErrorCode::unsupported);
  EXPECT_EQ(code(none, {}), ErrorCode::invalid_argument);
  EXPECT_EQ(code(none, {8}), ErrorCode::invalid_argument);
  EXPECT_EQ(code(none, {-1}), ErrorCode::invalid_argument);
}

}  // namespace
}  // namespace nibble
