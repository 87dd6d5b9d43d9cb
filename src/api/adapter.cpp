// Adapters of a loaded model: read, switched, taken off.
#include "adapters/peft_files.h"
#include "adapters/pissa.h"
#include "api/implementation.h"
#include "base/error.h"
#include "models/layer.h"
#include "nn/dora.h"

namespace nibble {

namespace api {

void LoadedModel::load_adapter(const std::filesystem::path& path, const std::string& name) {
  require(!name.empty(), "load_adapter: found an empty name");
  require(!adapters.contains(name), "load_adapter: an adapter named '{}' is loaded already", name);
  const models::Decoder& held = *decoder;
  adapters::Adapter adapter = adapters::read_adapter(held.spec(), path);
  adapters::take_principal_part_off(adapter, held.backend(), [&](const std::string& module) {
    const auto linear = models::bind_linear(held.backend(), held.spec(), held.weights(), module);
    if (!std::holds_alternative<nn::DenseWeight>(linear.weight))
      fail(ErrorCode::unsupported,
           "{}: an adapter that started as '{}' stands beside a part of the weights as they were before they were "
           "quantized: load the model without load_in_4bit and load_in_8bit",
           path.string(), adapter.config.init_lora_weights);
    return held.backend().to_host(nn::plain_weight(held.backend(), linear));
  });
  const auto updates = adapters::updates_of(adapter, held);
  decoder->set_updates(updates);  // where that fails, the name stays free
  this->adapters[name] = updates;
  active_adapter = name;
}

void LoadedModel::set_adapter(const std::string& name) {
  const auto found = adapters.find(name);
  if (found == adapters.end()) fail(ErrorCode::not_found, "set_adapter: no adapter named '{}' is loaded", name);
  decoder->set_updates(found->second);
  active_adapter = name;
}

void LoadedModel::disable_adapter() {
  decoder->set_updates(nullptr);
  active_adapter.clear();
}

}  // namespace api

void AutoModelForCausalLM::load_adapter(const std::filesystem::path& path, const std::string& name) {
  model_->load_adapter(path, name);
}
void AutoModelForCausalLM::set_adapter(const std::string& name) { model_->set_adapter(name); }
void AutoModelForCausalLM::disable_adapter() { model_->disable_adapter(); }
const std::string& AutoModelForCausalLM::active_adapter() const { return model_->active_adapter; }

void AutoModelForSeq2SeqLM::load_adapter(const std::filesystem::path& path, const std::string& name) {
  model_->load_adapter(path, name);
}
void AutoModelForSeq2SeqLM::set_adapter(const std::string& name) { model_->set_adapter(name); }
void AutoModelForSeq2SeqLM::disable_adapter() { model_->disable_adapter(); }
const std::string& AutoModelForSeq2SeqLM::active_adapter() const { return model_->active_adapter; }

}  // namespace nibble
