// A tokenizer put together from its steps, whatever file they came from.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/decoder.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/post_processor.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/token_model.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

/// The steps; any but the model may be missing.
struct PipelineSteps {
  AddedTokens added_tokens;
  std::unique_ptr<Normalizer> normalizer;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<TokenModel> model;
  PostProcessor post_processor;
  std::unique_ptr<Decoder> decoder;
};

class Pipeline final : public Tokenizer {
 public:
  explicit Pipeline(PipelineSteps steps) : steps_(std::move(steps)) {}

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override;
  std::string decode(std::span<const int32_t> ids, const DecodeOptions& options) const override;
  int32_t vocab_size() const override;
  std::optional<int32_t> token_to_id(std::string_view token) const override;
  std::optional<std::string> id_to_token(int32_t id) const override;
  bool is_special(int32_t id) const override;
  DecodedRun decode_run(std::span<const int32_t> ids, const DecodeOptions& options,
                        RunPosition position) const override;

 private:
  PipelineSteps steps_;
};

}  // namespace nibble
