// PCRE2 behind tokenizer/regex.h.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/regex.h"

#include <pcre2.h>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

constexpr uint32_t kMatchLimit = 5'000'000;  // steps of one match, a fraction of a second
constexpr uint32_t kHeapLimitKib = 64 * 1024;
constexpr size_t kMaxPatternBytes = 100'000;

// What a match needs, kept per thread because a tokenizer matches millions of short texts.
struct MatchState {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, 8 * 1024 * 1024, nullptr);
  MatchState() {
    if (data == nullptr || context == nullptr || stack == nullptr)
      fail(ErrorCode::out_of_memory, "regular expression: no memory");
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, kHeapLimitKib);
  }
  ~MatchState() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
};

std::string message_of(int error) {
  PCRE2_UCHAR text[160];
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Regex::Code {
  pcre2_code* compiled = nullptr;
  ~Code() { pcre2_code_free(compiled); }
};

Regex::Regex(std::string_view pattern, std::string_view source) : source_(source) {
  compile(translate_oniguruma(pattern, source));
}

Regex Regex::literal(std::string_view text) {
  Regex regex;
  std::string pattern;
  for (const char c : text) {
    const bool plain = (static_cast<unsigned char>(c) & 0x80) != 0 || c == '_' || (c >= '0' && c <= '9') ||
                       (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!plain)
      pattern += fmt::format("\\x{:02x}", static_cast<unsigned>(c));
    else
      pattern += c;
  }
  regex.source_ = "literal pattern";
  regex.compile(pattern);
  return regex;
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;

void Regex::compile(const std::string& pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    fail(ErrorCode::corrupt_file, "{}: regular expression of {} bytes is too long", source_, pattern.size());
  }
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context) fail(ErrorCode::out_of_memory, "regular expression: no memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  code_ = std::make_unique<Code>();
  int error = 0;
  PCRE2_SIZE at = 0;
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  code_->compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), kOptions, &error, &at, context.get());
  if (code_->compiled == nullptr) {
    fail(ErrorCode::corrupt_file, "{}: bad regular expression '{}' at {}: {}", source_, pattern, at, message_of(error));
  }
  pcre2_jit_compile(code_->compiled, PCRE2_JIT_COMPLETE);  // without it the interpreter gives the same matches
}

std::optional<Regex::Match> Regex::find(std::string_view text, size_t from) const {
  thread_local MatchState state;
  const int found = pcre2_match(code_->compiled, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                PCRE2_NO_UTF_CHECK, state.data, state.context);
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0) fail(ErrorCode::corrupt_file, "{}: regular expression gave up: {}", source_, message_of(found));
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(state.data);
  if (range[0] < from || range[1] < range[0]) {  // \K inside a lookahead can do this
    fail(ErrorCode::unsupported, "{}: regular expression moves its match backwards", source_);
  }
  return Match{range[0], range[1]};
}

size_t Regex::character_length(char lead) { return utf8_length(static_cast<unsigned char>(lead)); }

}  // namespace nibble
