// The tokenizer pipeline: added tokens, normalizer, pre-tokenizer, model, post-processor, decoder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/tokenizer.h"
#include "tokenizer/decoder.h"

namespace nibble {

/// Immutable after loading; thread-safe.
class Tokenizer {
 public:
  /// A directory with tokenizer.json or tokenizer.model (+ tokenizer_config.json and friends), or one such file.
  static std::shared_ptr<const Tokenizer> load(const std::filesystem::path& path);
  /// From the text of a tokenizer.json; `source` names it in errors.
  static std::shared_ptr<const Tokenizer> from_json(std::string_view text, std::string_view source);
  virtual ~Tokenizer() = default;

  virtual std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const = 0;
  virtual std::string decode(std::span<const int32_t> ids, const DecodeOptions& options) const = 0;
  virtual int32_t vocab_size() const = 0;  // with added tokens
  virtual std::optional<int32_t> token_to_id(std::string_view token) const = 0;
  virtual std::optional<std::string> id_to_token(int32_t id) const = 0;
  virtual bool is_special(int32_t id) const = 0;
  /// Decodes ids that stand at `position` of a longer sequence (IncrementalDecoder).
  virtual DecodedRun decode_run(std::span<const int32_t> ids, const DecodeOptions& options,
                                RunPosition position) const = 0;
};

}  // namespace nibble
