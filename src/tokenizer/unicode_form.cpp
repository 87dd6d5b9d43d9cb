// utf8proc behind tokenizer/unicode_form.h.
#include "tokenizer/unicode_form.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "base/error.h"
#include "tokenizer/newer_characters.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

void append_form(std::string& out, std::string_view text, utf8proc_option_t options) {
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                               static_cast<utf8proc_ssize_t>(text.size()), &result, options);
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(result, std::free);
  if (length < 0)
    fail(ErrorCode::out_of_memory, "Unicode normalization of {} bytes: {}", text.size(), utf8proc_errmsg(length));
  out.append(reinterpret_cast<const char*>(result), static_cast<size_t>(length));
}

}  // namespace

void to_unicode_form(std::string& text, UnicodeForm form) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; })) return;
  int options = UTF8PROC_STABLE;
  options |= form == UnicodeForm::nfc || form == UnicodeForm::nfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == UnicodeForm::nfkc || form == UnicodeForm::nfkd) options |= UTF8PROC_COMPAT;
  std::string out;
  size_t open = 0;
  const auto flush = [&](size_t end) {
    if (open < end)
      append_form(out, std::string_view(text).substr(open, end - open), static_cast<utf8proc_option_t>(options));
  };
  for (size_t at = 0; at < text.size();) {  // an unassigned character is a border that nothing moves or joins over
    const auto [c, length] = front_code_point(std::string_view(text).substr(at));
    if (is_inert_in_normalization(c)) {
      flush(at);
      append_utf8(out, c);
      open = at + length;
    }
    at += length;
  }
  flush(text.size());
  text.swap(out);
}

void append_lowercase(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  } else if (c == 0x130) {  // the only letter whose lower case is two characters
    out += 'i';
    append_utf8(out, 0x307);
  } else {
    append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

size_t grapheme_length(std::string_view text) {
  auto [current, at] = front_code_point(text);
  utf8proc_int32_t state = 0;
  while (at < text.size()) {
    const auto [next, length] = front_code_point(text.substr(at));
    if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(current), static_cast<utf8proc_int32_t>(next),
                                         &state))
      break;
    current = next;
    at += length;
  }
  return at;
}

}  // namespace nibble
