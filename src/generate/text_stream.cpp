// Text while tokens arrive.
#include "generate/text_stream.h"

#include <algorithm>

namespace nibble {

size_t find_stop(std::string_view text, const std::vector<std::string>& stop) {
  size_t first = text.npos;
  for (const std::string& end : stop) first = std::min(first, text.find(end));
  return first;
}

TextStream::TextStream(const Tokenizer* tokenizer, const std::vector<std::string>& stop) : stop_(stop) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer, DecodeOptions{.skip_special_tokens = true});
}

std::string TextStream::push(int32_t token) {
  if (!decoder_ || is_stopped_) return "";
  return release(decoder_->push(token), false);
}

std::string TextStream::finish() {
  if (!decoder_ || is_stopped_) return "";
  return release(decoder_->finish(), true);
}

namespace {

/// Bytes at the end of `text` that may be the beginning of a stop string.
size_t undecided_bytes(std::string_view text, const std::vector<std::string>& stop) {
  size_t longest = 0;
  for (const std::string& end : stop) {
    for (size_t size = std::min(text.size(), end.size() - 1); size > longest; --size) {
      if (text.ends_with(std::string_view(end).substr(0, size))) longest = size;
    }
  }
  return longest;
}

}  // namespace

std::string TextStream::release(std::string_view added, bool is_last) {
  held_ += added;
  size_t size = find_stop(held_, stop_);
  if (size != std::string::npos) {
    is_stopped_ = true;
  } else {
    size = held_.size() - (is_last ? 0 : undecided_bytes(held_, stop_));
  }
  std::string certain = held_.substr(0, size);
  held_.erase(0, is_stopped_ ? held_.size() : size);
  text_ += certain;
  return certain;
}

}  // namespace nibble
