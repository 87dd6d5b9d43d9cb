// Adapters of a loaded model: read, switched, taken off.
#include "adapters/peft_files.h"
#include "adapters/pissa.h"
#include "api/implementation.h"
#include "base/error.h"
#include "models/layer.h"
#include "nn/dora.h"

namespace nibble {

void AutoModelForCausalLM::load_adapter(const std::filesystem::path& path, const std::string& name) {
  require(!name.empty(), "load_adapter: found an empty name");
  require(!model_->adapters.contains(name), "load_adapter: an adapter named '{}' is loaded already", name);
  const models::Decoder& decoder = *model_->decoder;
  adapters::Adapter adapter = adapters::read_adapter(decoder.spec(), path);
  adapters::take_principal_part_off(adapter, decoder.backend(), [&](const std::string& module) {
    const auto linear = models::bind_linear(decoder.backend(), decoder.spec(), decoder.weights(), module);
    if (!std::holds_alternative<nn::DenseWeight>(linear.weight))
      fail(ErrorCode::unsupported,
           "{}: an adapter that started as 'pissa' stands beside a part of the weights as they were before they were "
           "quantized: load the model without load_in_4bit and load_in_8bit",
           path.string());
    return decoder.backend().to_host(nn::plain_weight(decoder.backend(), linear));
  });
  model_->adapters[name] = adapters::updates_of(adapter, *model_->decoder);
  set_adapter(name);
}

void AutoModelForCausalLM::set_adapter(const std::string& name) {
  const auto found = model_->adapters.find(name);
  if (found == model_->adapters.end()) fail(ErrorCode::not_found, "set_adapter: no adapter named '{}' is loaded", name);
  model_->decoder->set_updates(found->second);
  model_->active_adapter = name;
}

void AutoModelForCausalLM::disable_adapter() {
  model_->decoder->set_updates(nullptr);
  model_->active_adapter.clear();
}

const std::string& AutoModelForCausalLM::active_adapter() const { return model_->active_adapter; }

}  // namespace nibble
