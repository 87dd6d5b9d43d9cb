// include/nibble/seq2seq.h over the decoder, its encoder and the generator.
#include "nibble/seq2seq.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <ostream>

#include "api/generation_config.h"
#include "api/implementation.h"
#include "api/model_source.h"
#include "api/placement.h"
#include "base/error.h"
#include "device/device.h"
#include "generate/generator.h"
#include "models/registry.h"
#include "runtime/session.h"

namespace nibble {

namespace {

/// As transformers: generation_config.json, then config.json; bos_token_id if neither says.
int32_t find_start(const api::ModelSource& source, int64_t vocab) {
  for (const char* key : {"decoder_start_token_id", "bos_token_id"})
    for (const Json* json : {&source.generation_config, &source.config}) {
      if (!json->is_object()) continue;
      const auto id = find_value<int64_t>(*json, key, source.config_name);
      if (!id) continue;
      if (*id < 0 || *id >= vocab)
        fail(ErrorCode::corrupt_file, "{}: key '{}': found {}, expected 0 to {} (the vocabulary)", source.config_name,
             key, *id, vocab - 1);
      return static_cast<int32_t>(*id);
    }
  fail(ErrorCode::corrupt_file, "{}: key 'decoder_start_token_id' is missing, expected the id that targets start with",
       source.config_name);
}

/// Room for a target at first; its cache grows.
constexpr int64_t kRoom = 4096;

}  // namespace

AutoModelForSeq2SeqLM::AutoModelForSeq2SeqLM(std::unique_ptr<Implementation> model) : model_(std::move(model)) {}
AutoModelForSeq2SeqLM::AutoModelForSeq2SeqLM(AutoModelForSeq2SeqLM&&) noexcept = default;
AutoModelForSeq2SeqLM& AutoModelForSeq2SeqLM::operator=(AutoModelForSeq2SeqLM&&) noexcept = default;
AutoModelForSeq2SeqLM::~AutoModelForSeq2SeqLM() = default;

AutoModelForSeq2SeqLM AutoModelForSeq2SeqLM::from_pretrained(const std::filesystem::path& path,
                                                             const LoadOptions& options) {
  options.quantization_config.validate();
  auto model = std::make_unique<Implementation>();
  model->source = api::open_model(path, options);
  const models::ModelSpec spec = models::build_spec(model->source.config, model->source.config_name);
  if (!spec.encoder)
    fail(ErrorCode::unsupported, "{}: {} has no encoder, expected an encoder-decoder; use AutoModelForCausalLM",
         model->source.config_name, spec.architecture);
  model->start = find_start(model->source, spec.vocab_size);
  model->generation_config = api::read_generation_config(model->source);
  model->decoder = models::load_decoder(model->source.config, model->source.config_name, model->source.checkpoint,
                                        api::with_device(model->source, options));
  return AutoModelForSeq2SeqLM(std::move(model));
}

GenerationOutput AutoModelForSeq2SeqLM::generate(const std::vector<int32_t>& source, const GenerationConfig& config,
                                                 const AutoTokenizer* tokenizer, const TokenCallback& on_token) {
  return generate(std::vector<std::vector<int32_t>>{source}, config, tokenizer, on_token);
}

GenerationOutput AutoModelForSeq2SeqLM::generate(const std::vector<std::vector<int32_t>>& sources,
                                                 const GenerationConfig& config, const AutoTokenizer* tokenizer,
                                                 const TokenCallback& on_token) {
  require(!sources.empty(), "generate: found no source, expected at least one");
  GenerationConfig effective = config;
  if (effective.eos_token_id.empty()) effective.eos_token_id = model_->generation_config.eos_token_id;
  if (!effective.pad_token_id) effective.pad_token_id = model_->generation_config.pad_token_id;
  effective.validate();
  Session session(*model_->decoder, sequences_needed(sources.size(), effective),
                  1 + std::min(effective.max_new_tokens, kRoom), effective.batch_invariant);
  const auto begin = std::chrono::steady_clock::now();
  std::vector<int64_t> sequences(static_cast<size_t>(std::max<int64_t>(1, effective.num_beams)));
  std::iota(sequences.begin(), sequences.end(), 0);
  int64_t source_tokens = 0;
  for (const auto& source : sources) {
    session.encode(sequences, source);
    source_tokens += static_cast<int64_t>(source.size());
    for (int64_t& sequence : sequences) sequence += static_cast<int64_t>(sequences.size());
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const std::vector<std::vector<int32_t>> starts(sources.size(), std::vector<int32_t>{model_->start});
  GenerationOutput output =
      nibble::generate(session, tokenizer ? &tokenizer->implementation() : nullptr, starts, effective, on_token);
  output.times.prompt_tokens = source_tokens;
  output.times.prefill_seconds += seconds;
  return output;
}

std::vector<float> AutoModelForSeq2SeqLM::logits(std::span<const int32_t> source, std::span<const int32_t> target) {
  Session session(*model_->decoder, 1, static_cast<int64_t>(target.size()));
  const int64_t sequence = 0;
  session.encode({&sequence, 1}, source);
  return session.append_all(0, target);
}

int64_t AutoModelForSeq2SeqLM::get_memory_footprint() const { return summary().memory_footprint_bytes; }
int64_t AutoModelForSeq2SeqLM::num_parameters() const { return summary().num_parameters; }
const ModelSummary& AutoModelForSeq2SeqLM::summary() const { return model_->decoder->summary(); }
int64_t AutoModelForSeq2SeqLM::vocab_size() const { return model_->decoder->vocab_size(); }
std::map<std::string, std::string> AutoModelForSeq2SeqLM::hf_device_map() const {
  return {{"", device::to_string(model_->decoder->backend().device())}};
}
int32_t AutoModelForSeq2SeqLM::decoder_start_token_id() const { return model_->start; }
const GenerationConfig& AutoModelForSeq2SeqLM::generation_config() const { return model_->generation_config; }

void AutoModelForSeq2SeqLM::save_pretrained(const std::filesystem::path& path, int64_t max_shard_size_bytes) const {
  model_->save(model_->decoder->weights(), path, max_shard_size_bytes);
}

std::ostream& operator<<(std::ostream& out, const AutoModelForSeq2SeqLM& model) { return out << model.summary().tree; }

bool is_encoder_decoder(const std::filesystem::path& path) {
  const std::filesystem::path resolved = resolve_model(path.string());
  if (api::is_gguf_file(resolved)) return false;
  const api::ModelSource source = api::open_config(resolved);
  return find_value<bool>(source.config, "is_encoder_decoder", source.config_name).value_or(false);
}

}  // namespace nibble
