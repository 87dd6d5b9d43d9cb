// The step that cuts text into the pieces that a model sees one at a time.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"
#include "tokenizer/pieces.h"

namespace nibble {

/// Immutable; thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
};

/// From the "pre_tokenizer" of a tokenizer.json; null for null. Errors: corrupt_file, unsupported (the type, named).
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Json& description, std::string_view source);

}  // namespace nibble
