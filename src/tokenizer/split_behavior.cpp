// The five behaviors of a split.
#include "tokenizer/split_behavior.h"

#include <algorithm>
#include <string>

namespace nibble {

namespace {

void join_contiguous(std::vector<MatchSpan>& spans) {
  std::vector<MatchSpan> joined;
  bool previous_match = false;
  for (const MatchSpan& span : spans) {
    if (span.is_match == previous_match && !joined.empty())
      joined.back().end = span.end;
    else
      joined.push_back(span);
    previous_match = span.is_match;
  }
  spans.swap(joined);
}

void join_with_previous(std::vector<MatchSpan>& spans) {
  std::vector<MatchSpan> joined;
  bool previous_match = false;
  for (const MatchSpan& span : spans) {
    if (span.is_match && !previous_match && !joined.empty())
      joined.back().end = span.end;
    else
      joined.push_back(span);
    previous_match = span.is_match;
  }
  spans.swap(joined);
}

void join_with_next(std::vector<MatchSpan>& spans) {
  std::vector<MatchSpan> joined;
  bool previous_match = false;
  for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
    if (span->is_match && !previous_match && !joined.empty())
      joined.back().begin = span->begin;
    else
      joined.push_back(*span);
    previous_match = span->is_match;
  }
  std::reverse(joined.begin(), joined.end());
  spans.swap(joined);
}

}  // namespace

void apply_behavior(std::vector<MatchSpan>& spans, SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::isolated:
      return;
    case SplitBehavior::removed:
      std::erase_if(spans, [](const MatchSpan& span) { return span.is_match; });
      return;
    case SplitBehavior::merged_with_previous:
      return join_with_previous(spans);
    case SplitBehavior::merged_with_next:
      return join_with_next(spans);
    case SplitBehavior::contiguous:
      return join_contiguous(spans);
  }
}

SplitBehavior read_behavior(const Json& json, SplitBehavior fallback, std::string_view source) {
  const auto name = find_value<std::string>(json, "behavior", source);
  if (!name) return fallback;
  if (*name == "Removed") return SplitBehavior::removed;
  if (*name == "Isolated") return SplitBehavior::isolated;
  if (*name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (*name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (*name == "Contiguous") return SplitBehavior::contiguous;
  fail(ErrorCode::corrupt_file, "{}: unknown split behavior '{}'", source, *name);
}

Regex read_pattern(const Json& json, std::string_view source) {
  const Json pattern = get_value<Json>(json, "pattern", source);
  if (const auto text = find_value<std::string>(pattern, "String", source)) return Regex::literal(*text);
  return Regex(get_value<std::string>(pattern, "Regex", source), source);
}

PrependScheme metaspace_prepend(const Json& json, std::string_view source) {
  const auto scheme = find_value<std::string>(json, "prepend_scheme", source);
  if (find_value<bool>(json, "add_prefix_space", source) == false) return PrependScheme::never;
  if (!scheme || *scheme == "always") return PrependScheme::always;
  if (*scheme == "first") return PrependScheme::first;
  if (*scheme == "never") return PrependScheme::never;
  fail(ErrorCode::corrupt_file, "{}: unknown prepend_scheme '{}'", source, *scheme);
}

}  // namespace nibble
