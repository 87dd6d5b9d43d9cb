// include/nibble/train.h over src/train.
#include "nibble/train.h"

#include <algorithm>
#include <cmath>

#include "adapters/loftq.h"
#include "adapters/lora.h"
#include "adapters/pissa.h"
#include "api/implementation.h"
#include "base/error.h"
#include "train/dataset.h"
#include "train/loop.h"

namespace nibble {

Dataset Dataset::from_jsonl(const std::filesystem::path& path, const AutoTokenizer& tokenizer,
                            const DatasetOptions& options) {
  return train::read_jsonl(path,
                           {[&](std::string_view text, bool add_special_tokens) {
                              return tokenizer(text, {.add_special_tokens = add_special_tokens});
                            },
                            [&](std::span<const ChatMessage> messages, bool add_generation_prompt) {
                              return tokenizer.apply_chat_template(messages, add_generation_prompt);
                            },
                            tokenizer.eos_token_id()},
                           options);
}

Trainer::Trainer(api::LoadedModel& model, std::optional<LoraConfig> lora, TrainingArguments arguments, Dataset train,
                 std::optional<Dataset> evaluation, std::string adapter_name)
    : model_(model),
      lora_(std::move(lora)),
      arguments_(std::move(arguments)),
      train_(std::move(train)),
      evaluation_(std::move(evaluation)),
      adapter_name_(std::move(adapter_name)) {}

Trainer::Trainer(AutoModelForCausalLM& model, std::optional<LoraConfig> lora, TrainingArguments arguments,
                 Dataset train, std::optional<Dataset> evaluation, std::string adapter_name)
    : Trainer(model.implementation(), std::move(lora), std::move(arguments), std::move(train), std::move(evaluation),
              std::move(adapter_name)) {}

Trainer::Trainer(AutoModelForSeq2SeqLM& model, std::optional<LoraConfig> lora, TrainingArguments arguments,
                 Dataset train, std::optional<Dataset> evaluation, std::string adapter_name)
    : Trainer(model.implementation(), std::move(lora), std::move(arguments), std::move(train), std::move(evaluation),
              std::move(adapter_name)) {}

namespace {

void check_lengths(const Dataset& dataset, int64_t context) {
  for (size_t i = 0; i < dataset.samples.size(); ++i)
    require(static_cast<int64_t>(dataset.samples[i].ids.size()) <= context,
            "train: sample {} has {} tokens, expected at most the model's context of {}: see max_length", i,
            dataset.samples[i].ids.size(), context);
}

adapters::Adapter start(const models::Decoder& decoder, const Checkpoint& original,
                        const std::optional<LoraConfig>& lora, uint64_t seed) {
  if (!lora) return adapters::whole_model(decoder);
  adapters::Adapter adapter = adapters::create_adapter(decoder.spec(), *lora, seed);
  if (adapters::is_taken_off(lora->init_lora_weights))
    adapters::start_from_principal_part(adapter, decoder, original, seed);
  if (lora->init_lora_weights == "loftq") adapters::start_from_quantization_error(adapter, decoder, original, seed);
  adapters::add_from_model(adapter, decoder);
  return adapter;
}

/// What PiSSA's adapter stands beside where the original weights are quantized.
constexpr const char* kResidual = "residual_model";

void save_residual(const api::LoadedModel& implementation, const adapters::Adapter& adapter,
                   const std::filesystem::path& directory) {
  std::unordered_map<std::string, nn::Weight> residuals;
  for (const adapters::AdapterLayer& layer : adapter.layers) residuals[layer.module] = *layer.residual;
  implementation.save(implementation.decoder->weights().with(residuals), directory, int64_t{5} << 30);
}

/// -log softmax(logits)[target].
double loss_of(std::span<const float> logits, int32_t target) {
  const double largest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - largest);
  return std::log(total) + largest - static_cast<double>(logits[static_cast<size_t>(target)]);
}

}  // namespace

TrainingReport Trainer::train(const std::function<void(const TrainingProgress&)>& on_progress,
                              const std::function<void(const TrainingProgress&)>& on_step) {
  api::LoadedModel& implementation = model_;
  models::Decoder& decoder = *implementation.decoder;
  arguments_.validate();  // before what may take long
  require(!train_.samples.empty(), "train: found no samples");
  require(!adapter_name_.empty(), "adapter_name: found an empty name");
  check_lengths(train_, decoder.spec().max_position_embeddings);
  if (evaluation_) check_lengths(*evaluation_, decoder.spec().max_position_embeddings);
  adapters::Adapter adapter = start(decoder, *implementation.source.checkpoint, lora_, arguments_.seed);
  const bool has_new_base = !adapter.layers.empty() && adapter.layers[0].residual && !adapter.layers[0].start_a;
  const std::filesystem::path base = has_new_base ? arguments_.output_dir / kResidual : implementation.source.path;
  TrainingReport report = train::train_adapter(decoder, adapter, base.string(), arguments_, train_,
                                               evaluation_ ? &*evaluation_ : nullptr, on_progress, on_step);
  if (has_new_base && !std::filesystem::exists(base)) save_residual(implementation, adapter, base);
  if (!lora_) api::copy_companions(implementation.source, arguments_.output_dir);
  implementation.adapters[adapter_name_] = adapters::updates_of(adapter, decoder);
  model_.set_adapter(adapter_name_);
  return report;
}

namespace {

/// The mean over all targets; `logits_of` gives those of a sample.
template <typename LogitsOf>
double mean_loss(const Dataset& dataset, size_t vocab, const LogitsOf& logits_of) {
  double loss = 0;
  int64_t targets = 0;
  for (const Dataset::Sample& sample : dataset.samples) {
    const std::vector<float> logits = logits_of(sample);
    for (size_t i = 1; i < sample.ids.size(); ++i) {
      if (!sample.is_target[i]) continue;
      loss += loss_of(std::span(logits).subspan((i - 1) * vocab, vocab), sample.ids[i]);
      ++targets;
    }
  }
  require(targets > 0, "evaluate: found no token to predict");
  return loss / static_cast<double>(targets);
}

}  // namespace

double evaluate(AutoModelForCausalLM& model, const Dataset& dataset) {
  return mean_loss(dataset, static_cast<size_t>(model.vocab_size()),
                   [&](const Dataset::Sample& sample) { return model.logits(sample.ids); });
}

double evaluate(AutoModelForSeq2SeqLM& model, const Dataset& dataset) {
  return mean_loss(dataset, static_cast<size_t>(model.vocab_size()),
                   [&](const Dataset::Sample& sample) { return model.logits(sample.source, sample.ids); });
}

}  // namespace nibble
