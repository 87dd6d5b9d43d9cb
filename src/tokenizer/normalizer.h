// The step that rewrites text before it is cut: Unicode forms, case, accents, spaces, replacements.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"

namespace nibble {

/// Text under normalization. `at_start`: its first character comes from the first character of the input.
struct NormalizedText {
  std::string text;
  bool at_start = false;
};

/// Immutable; thread-safe.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void normalize(NormalizedText& text) const = 0;
};

/// From the "normalizer" of a tokenizer.json; null for null. Errors: corrupt_file, unsupported (the type, named).
std::unique_ptr<Normalizer> make_normalizer(const Json& description, std::string_view source);

}  // namespace nibble
