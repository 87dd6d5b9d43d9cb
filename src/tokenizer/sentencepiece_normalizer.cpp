// One pass over the text: the longest rule at each position, with runs of spaces joined on the way.
#include "tokenizer/sentencepiece_normalizer.h"

#include <string_view>
#include <utility>

#include "tokenizer/byte_trie.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

constexpr std::string_view kMark = "\xE2\x96\x81";

class SentencePieceNormalizer final : public Normalizer {
 public:
  explicit SentencePieceNormalizer(SentencePieceRules rules) : rules_(std::move(rules)) {
    for (const std::string& text : rules_.user_defined) user_defined_.insert(text, 0);
  }

  void normalize(NormalizedText& text) const override {
    std::string_view rest = text.text;
    while (rules_.remove_extra_whitespaces && !rest.empty()) {
      const auto [to, length] = step(rest);
      if (to != " ") break;
      rest.remove_prefix(length);
    }
    const std::string_view space = rules_.escape_whitespaces ? kMark : " ";
    std::string out;
    if (!rest.empty()) {
      if (rules_.add_dummy_prefix && !rules_.whitespace_as_suffix) out.append(space);
      append_steps(rest, space, out);
      while (rules_.remove_extra_whitespaces && out.ends_with(space)) out.resize(out.size() - space.size());
      if (rules_.add_dummy_prefix && rules_.whitespace_as_suffix) out.append(space);
    }
    text.text.swap(out);
  }

 private:
  struct Step {
    std::string_view to;
    size_t length;
  };
  Step step(std::string_view text) const {
    if (const auto fixed = user_defined_.longest_prefix(text); fixed.length > 0)
      return {text.substr(0, fixed.length), fixed.length};
    if (rules_.charsmap) {
      if (const auto rule = rules_.charsmap->find_longest(text)) return {rule->replacement, rule->length};
    }
    const size_t length = utf8_length(static_cast<unsigned char>(text[0]));
    return {text.substr(0, length), length};
  }

  void append_steps(std::string_view rest, std::string_view space, std::string& out) const {
    bool after_space = rules_.remove_extra_whitespaces;
    while (!rest.empty()) {
      auto [to, length] = step(rest);
      rest.remove_prefix(length);
      while (after_space && to.starts_with(' ')) to.remove_prefix(1);
      if (to.empty()) continue;
      for (const char c : to) {
        if (c == ' ')
          out.append(space);
        else
          out += c;
      }
      after_space = rules_.remove_extra_whitespaces && to.ends_with(' ');
    }
  }

  SentencePieceRules rules_;
  ByteTrie user_defined_;
};

}  // namespace

std::unique_ptr<Normalizer> make_sentencepiece_normalizer(SentencePieceRules rules) {
  return std::make_unique<SentencePieceNormalizer>(std::move(rules));
}

}  // namespace nibble
