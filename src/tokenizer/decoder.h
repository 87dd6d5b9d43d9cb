// The step that joins token texts into text, whole or in parts while they are generated.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace nibble {

/// Where a run of tokens stands in the sequence that is decoded.
struct RunPosition {
  bool first = true;  // nothing was decoded before it
  bool last = true;   // nothing follows
};

/// Immutable; thread-safe.
class Decoder {
 public:
  virtual ~Decoder() = default;
  /// Rewrites the token texts; the result of decoding is what is left, joined.
  virtual void decode(std::vector<std::string>& tokens, RunPosition position) const = 0;
  /// Whether decoding what follows these tokens cannot change their text. Called before decode() on the same tokens.
  virtual bool can_cut(const std::vector<std::string>&) const { return true; }
};

/// From the "decoder" of a tokenizer.json; null for null (tokens joined by spaces).
/// Errors: corrupt_file, unsupported (the type, named).
std::unique_ptr<Decoder> make_decoder(const Json& description, std::string_view source);

/// For vocabularies of raw bytes: joins them and repairs what is no UTF-8.
std::unique_ptr<Decoder> make_raw_bytes_decoder();

/// The chain of a SentencePiece model: marks to spaces, <0x..> to bytes, the first space off if `strip_first_space`.
std::unique_ptr<Decoder> make_sentencepiece_decoder(bool strip_first_space);

/// Decodes one run and says whether it may be cut off after it.
struct DecodedRun {
  std::string text;
  bool can_cut = true;
};
DecodedRun decode_run(const Decoder* decoder, std::vector<std::string> tokens, RunPosition position);

}  // namespace nibble
