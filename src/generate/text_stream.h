// A row's text while its tokens arrive: what is certain is handed out, what may become a stop string is held back.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tokenizer/incremental_decoder.h"

namespace nibble {

/// Not thread-safe. Without a tokenizer all text is empty.
class TextStream {
 public:
  TextStream(const Tokenizer* tokenizer, const std::vector<std::string>& stop);

  /// Text that became certain with `token`; it never holds a part of a stop string.
  std::string push(int32_t token);
  /// The text held back, when no token follows.
  std::string finish();
  /// Whether a stop string was found: nothing comes after it.
  bool is_stopped() const { return is_stopped_; }
  /// All text handed out so far.
  const std::string& text() const { return text_; }

 private:
  std::string release(std::string_view added, bool is_last);

  std::optional<IncrementalDecoder> decoder_;
  const std::vector<std::string>& stop_;
  std::string held_;
  std::string text_;
  bool is_stopped_ = false;
};

/// Position of the first stop string in `text`, npos if there is none.
size_t find_stop(std::string_view text, const std::vector<std::string>& stop);

}  // namespace nibble
