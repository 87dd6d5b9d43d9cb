// SentencePiece files that only a hostile writer makes.
#include "tokenizer/sentencepiece.h"

#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "tokenizer/charsmap.h"

namespace nibble {
namespace {

std::string little_endian(uint32_t value) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xFF);
  return bytes;
}

/// Field `number` of a protocol buffer, below 128 bytes long.
std::string field(int number, const std::string& bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}

std::string piece(const std::string& text, float score) {
  return field(1, field(1, text) + "\x15" + little_endian(std::bit_cast<uint32_t>(score)));
}

template <typename Body>
ErrorCode code_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::internal;
}

// NaN has no place in an order: sorting the scores of a BPE model read outside of them.
TEST(SentencePieceFile, RefusesNanScores) {
  for (const std::string kind : {"\x12\x02\x18\x01", "\x12\x02\x18\x02"}) {
    std::string file = kind;
    for (int i = 0; i < 64; ++i) file += piece("p" + std::to_string(i), static_cast<float>(-i));
    EXPECT_NO_THROW((void)read_sentencepiece(file, {}, "test"));
    file += piece("bad", std::numeric_limits<float>::quiet_NaN());
    EXPECT_EQ(code_of([&] { (void)read_sentencepiece(file, {}, "test"); }), ErrorCode::corrupt_file);
  }
}

/// A normalizer with one rule: byte E4 becomes the replacement at `start`.
std::string one_rule(const std::string& replacements, uint32_t start) {
  std::vector<uint32_t> units(512);
  units[0] = 256u << 10;
  units[256 ^ 0xE4] = 0xE4u | 1u << 8 | 1u << 10;  // a leaf follows at offset 1
  units[(256 ^ 0xE4) ^ 1] = start;
  std::string blob = little_endian(static_cast<uint32_t>(units.size() * 4));
  for (const uint32_t unit : units) blob += little_endian(unit);
  return blob + replacements;
}

// The text behind a normalizer is taken for valid UTF-8: half a character at its end made the next step read past it.
TEST(Charsmap, NeverCutsCharacters) {
  EXPECT_EQ(code_of([] { Charsmap(one_rule("\xF0", 0), "test"); }), ErrorCode::corrupt_file);
  const Charsmap rules(one_rule({"x\0\xC3\xA9\0", 5}, 0), "test");
  EXPECT_EQ(rules.find_longest("\xE4").value().replacement, "x");  // the rule itself works
  EXPECT_FALSE(rules.find_longest("\xE4\xBD\xA0"));
  EXPECT_FALSE(rules.find_shortest("\xE4\xBD\xA0"));
  EXPECT_EQ(Charsmap(one_rule({"x\0\xC3\xA9\0", 5}, 2), "test").find_longest("\xE4").value().replacement, "\xC3\xA9");
  EXPECT_FALSE(Charsmap(one_rule({"x\0\xC3\xA9\0", 5}, 3), "test").find_longest("\xE4"));
}

}  // namespace
}  // namespace nibble
