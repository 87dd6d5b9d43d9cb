// Encoder-decoder language models, such as T5 and flan-t5.
#pragma once

#include <filesystem>
#include <iosfwd>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nibble/model.h"

namespace nibble {

/// A language model that reads a source and writes a target. Move-only. One call at a time; different models may run in
/// parallel.
class AutoModelForSeq2SeqLM {
 public:
  /// As AutoModelForCausalLM::from_pretrained. Modules that transformers keeps in float32 (T5's wo) are not quantized,
  /// and are float32 where the rest is float16. Errors: also unsupported for a decoder without encoder.
  static AutoModelForSeq2SeqLM from_pretrained(const std::filesystem::path& path, const LoadOptions& options = {});

  AutoModelForSeq2SeqLM(AutoModelForSeq2SeqLM&&) noexcept;
  AutoModelForSeq2SeqLM& operator=(AutoModelForSeq2SeqLM&&) noexcept;
  ~AutoModelForSeq2SeqLM();

  /// Reads one source or a batch of sources of different lengths, once each, and writes a target for each. A row of the
  /// output's sequences is the target alone: decoder_start_token_id and the new tokens. times.prompt_tokens counts
  /// source tokens, prefill_seconds includes the encoder. Sources should end as the tokenizer ends them: T5's with
  /// </s>. Errors: invalid_argument (options, ids outside the vocabulary, an empty source), cancelled.
  GenerationOutput generate(const std::vector<int32_t>& source, const GenerationConfig& config = {},
                            const AutoTokenizer* tokenizer = nullptr, const TokenCallback& on_token = {});
  GenerationOutput generate(const std::vector<std::vector<int32_t>>& sources, const GenerationConfig& config = {},
                            const AutoTokenizer* tokenizer = nullptr, const TokenCallback& on_token = {});

  /// Logits (target.size(), vocab), row-major, after each token of a target that starts with decoder_start_token_id().
  std::vector<float> logits(std::span<const int32_t> source, std::span<const int32_t> target);

  /// As AutoModelForCausalLM's.
  void load_adapter(const std::filesystem::path& path, const std::string& name = "default");
  void set_adapter(const std::string& name);
  void disable_adapter();
  const std::string& active_adapter() const;

  /// Parameters and buffers as stored; statistics are not counted (as in transformers).
  int64_t get_memory_footprint() const;
  int64_t num_parameters() const;
  const ModelSummary& summary() const;
  int64_t vocab_size() const;
  std::map<std::string, std::string> hf_device_map() const;
  int32_t decoder_start_token_id() const;             // from generation_config.json or config.json
  const GenerationConfig& generation_config() const;  // from generation_config.json

  /// As AutoModelForCausalLM::save_pretrained.
  void save_pretrained(const std::filesystem::path& path, int64_t max_shard_size_bytes = int64_t{50} << 30) const;

  struct Implementation;
  Implementation& implementation() { return *model_; }

 private:
  explicit AutoModelForSeq2SeqLM(std::unique_ptr<Implementation> model);
  std::unique_ptr<Implementation> model_;
};

/// Prints the module tree as Python's print(model) does.
std::ostream& operator<<(std::ostream& out, const AutoModelForSeq2SeqLM& model);

/// Whether the model at `path` (what resolve_model accepts) is one for AutoModelForSeq2SeqLM: is_encoder_decoder of its
/// config.json. False for GGUF files. Errors: not_found, corrupt_file.
bool is_encoder_decoder(const std::filesystem::path& path);

}  // namespace nibble
