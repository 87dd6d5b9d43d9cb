// What happens to the delimiters of a split, and the settings that several pipeline steps share.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "tokenizer/regex.h"

namespace nibble {

/// A part of a text; spans cover the text without gaps, matches are the delimiters.
struct MatchSpan {
  size_t begin;
  size_t end;
  bool is_match;
};

enum class SplitBehavior : unsigned char { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// Removes or joins spans, so that those left are the pieces.
void apply_behavior(std::vector<MatchSpan>& spans, SplitBehavior behavior);

/// "behavior" of a pre-tokenizer. Errors: corrupt_file.
SplitBehavior read_behavior(const Json& json, SplitBehavior fallback, std::string_view source);

/// "pattern" of Split and Replace: {"String": text} or {"Regex": expression}.
Regex read_pattern(const Json& json, std::string_view source);

/// Where Metaspace puts its mark before a text that has none.
enum class PrependScheme : unsigned char { never, first, always };
PrependScheme metaspace_prepend(const Json& json, std::string_view source);

}  // namespace nibble
