// The step that puts special tokens around the ids of a text.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace nibble {

/// A list of template items, applied one template after the other. Immutable; thread-safe.
class PostProcessor {
 public:
  PostProcessor() = default;  // leaves ids as they are
  /// From the "post_processor" of a tokenizer.json. Errors: corrupt_file, unsupported (the type, named).
  PostProcessor(const Json& description, std::string_view source);
  /// Ids before and after the text.
  PostProcessor(std::vector<int32_t> before, std::vector<int32_t> after);

  std::vector<int32_t> apply(std::vector<int32_t> ids, bool add_special_tokens) const;

 private:
  struct Item {
    bool is_text;
    std::vector<int32_t> ids;  // of a special token
  };
  using Template = std::vector<Item>;
  void add(const Json& description, std::string_view source, int depth);
  void add_template(const Json& description, std::string_view source);
  std::vector<Template> templates_;
};

}  // namespace nibble
