// include/nibble/model.h over the decoder, the session and the generator.
#include "nibble/model.h"

#include <algorithm>
#include <ostream>

#include "api/generation_config.h"
#include "api/implementation.h"
#include "api/placement.h"
#include "base/error.h"
#include "base/output.h"
#include "checkpoint/safetensors_writer.h"
#include "device/cpu.h"
#include "device/cuda.h"
#include "device/device.h"
#include "generate/generator.h"
#include "models/convert_weights.h"
#include "models/summary.h"
#include "runtime/session.h"

namespace nibble {

void AutoModelForCausalLM::Implementation::check_ids(std::span<const int32_t> ids) const {
  const int64_t vocab = decoder->vocab_size();
  for (const int32_t id : ids)
    require(id >= 0 && id < vocab, "token id {}: expected 0 to {} (the model's vocabulary)", id, vocab - 1);
}

AutoModelForCausalLM::AutoModelForCausalLM(std::unique_ptr<Implementation> model) : model_(std::move(model)) {}
AutoModelForCausalLM::AutoModelForCausalLM(AutoModelForCausalLM&&) noexcept = default;
AutoModelForCausalLM& AutoModelForCausalLM::operator=(AutoModelForCausalLM&&) noexcept = default;
AutoModelForCausalLM::~AutoModelForCausalLM() = default;

AutoModelForCausalLM AutoModelForCausalLM::from_pretrained(const std::filesystem::path& path,
                                                           const LoadOptions& options) {
  options.quantization_config.validate();
  auto model = std::make_unique<Implementation>();
  model->source = api::open_model(path, options);
  api::require_decoder_alone(model->source);
  model->generation_config = api::read_generation_config(model->source);
  model->decoder = models::load_decoder(model->source.config, model->source.config_name, model->source.checkpoint,
                                        api::with_device(model->source, options));
  return AutoModelForCausalLM(std::move(model));
}

GenerationOutput AutoModelForCausalLM::generate(const std::vector<int32_t>& prompt, const GenerationConfig& config,
                                                const AutoTokenizer* tokenizer, const TokenCallback& on_token) {
  return generate(std::vector<std::vector<int32_t>>{prompt}, config, tokenizer, on_token);
}

GenerationOutput AutoModelForCausalLM::generate(const std::vector<std::vector<int32_t>>& prompts,
                                                const GenerationConfig& config, const AutoTokenizer* tokenizer,
                                                const TokenCallback& on_token) {
  require(!prompts.empty(), "generate: found no prompt, expected at least one");
  size_t longest = 0;
  for (const auto& prompt : prompts) {
    require(!prompt.empty(), "generate: found an empty prompt, expected at least one token");
    model_->check_ids(prompt);
    longest = std::max(longest, prompt.size());
  }
  GenerationConfig effective = config;
  if (effective.eos_token_id.empty()) effective.eos_token_id = model_->generation_config.eos_token_id;
  if (!effective.pad_token_id) effective.pad_token_id = model_->generation_config.pad_token_id;
  effective.validate();
  const int64_t context = max_position_embeddings();
  require(static_cast<int64_t>(longest) < context,
          "generate: the prompt has {} tokens, expected fewer than the model's context of {}", longest, context);
  const auto most = static_cast<int64_t>(longest);
  Session session(*model_->decoder, sequences_needed(prompts.size(), effective),
                  most + std::min(effective.max_new_tokens, context - most), effective.batch_invariant);
  return nibble::generate(session, tokenizer ? &tokenizer->implementation() : nullptr, prompts, effective, on_token);
}

std::vector<float> AutoModelForCausalLM::logits(std::span<const int32_t> tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  require(count >= 1 && count <= max_position_embeddings(), "logits: found {} tokens, expected 1 to {}", count,
          max_position_embeddings());
  model_->check_ids(tokens);
  Session session(*model_->decoder, 1, count);
  return session.append_all(0, tokens);
}

double AutoModelForCausalLM::measure_read_bandwidth() const {
  const ops::Backend& backend = model_->decoder->backend();
  return backend.cuda() ? device::measure_read_bandwidth(*backend.cuda())
                        : device::measure_read_bandwidth(backend.pool());
}

int64_t AutoModelForCausalLM::peak_device_bytes() const {
  const device::CudaStream* cuda = model_->decoder->backend().cuda();
  return cuda ? cuda->peak_bytes() : 0;
}

int64_t AutoModelForCausalLM::get_memory_footprint() const { return summary().memory_footprint_bytes; }
int64_t AutoModelForCausalLM::num_parameters() const { return summary().num_parameters; }
const ModelSummary& AutoModelForCausalLM::summary() const { return model_->decoder->summary(); }
int64_t AutoModelForCausalLM::vocab_size() const { return model_->decoder->vocab_size(); }
int64_t AutoModelForCausalLM::max_position_embeddings() const {
  return model_->decoder->spec().max_position_embeddings;
}
std::map<std::string, std::string> AutoModelForCausalLM::hf_device_map() const {
  return {{"", device::to_string(model_->decoder->backend().device())}};
}
const GenerationConfig& AutoModelForCausalLM::generation_config() const { return model_->generation_config; }

void AutoModelForCausalLM::save_pretrained(const std::filesystem::path& path, int64_t max_shard_size_bytes) const {
  model_->save(model_->decoder->weights(), path, max_shard_size_bytes);
}

void api::LoadedModel::save(const models::Weights& weights, const std::filesystem::path& path,
                            int64_t max_shard_size_bytes) const {
  AtomicDirectory directory(path);
  SafetensorsWriter writer(directory.path(), models::plan_saved(decoder->spec(), weights), max_shard_size_bytes);
  models::write_saved(decoder->spec(), weights, decoder->backend(), writer);
  writer.finish();
  api::write_config(decoder->config(), directory.path());
  api::copy_companions(source, directory.path());
  directory.commit();
}

std::ostream& operator<<(std::ostream& out, const AutoModelForCausalLM& model) { return out << model.summary().tree; }

ModelSummary inspect(const std::filesystem::path& path, const BitsAndBytesConfig& config, std::optional<DType> dtype) {
  config.validate();
  const api::ModelSource source = api::open_config(resolve_model(path.string()));
  return models::summarize(source.config, source.config_name, config, dtype);
}

}  // namespace nibble
