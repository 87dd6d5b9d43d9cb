// include/nibble/train.h over src/train.
#include "nibble/train.h"

#include "adapters/lora.h"
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

Trainer::Trainer(AutoModelForCausalLM& model, LoraConfig lora, TrainingArguments arguments, Dataset train,
                 std::optional<Dataset> evaluation)
    : model_(model),
      lora_(std::move(lora)),
      arguments_(std::move(arguments)),
      train_(std::move(train)),
      evaluation_(std::move(evaluation)) {}

TrainingReport Trainer::train(const std::function<void(const TrainingProgress&)>& on_progress) {
  auto& implementation = model_.implementation();
  models::Decoder& decoder = *implementation.decoder;
  require(train_.samples.size() > 0, "train: found no samples");
  for (const Dataset* dataset : {&train_, evaluation_ ? &*evaluation_ : nullptr})
    for (size_t i = 0; dataset && i < dataset->samples.size(); ++i)
      require(static_cast<int64_t>(dataset->samples[i].ids.size()) <= decoder.spec().max_position_embeddings,
              "train: sample {} has {} tokens, expected at most the model's context of {}", i,
              dataset->samples[i].ids.size(), decoder.spec().max_position_embeddings);
  adapters::Adapter adapter = adapters::create_adapter(decoder.spec(), lora_, arguments_.seed);
  const TrainingReport report = train::train_adapter(decoder, adapter, implementation.source.path.string(), arguments_,
                                                     train_, evaluation_ ? &*evaluation_ : nullptr, on_progress);
  implementation.adapters["default"] = adapters::updates_of(adapter);
  model_.set_adapter("default");
  return report;
}

}  // namespace nibble
