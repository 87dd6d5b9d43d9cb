// Adapters of a loaded model: read, switched, taken off.
#include "adapters/peft_files.h"
#include "api/implementation.h"
#include "base/error.h"

namespace nibble {

void AutoModelForCausalLM::load_adapter(const std::filesystem::path& path, const std::string& name) {
  require(!name.empty(), "load_adapter: found an empty name");
  require(!model_->adapters.contains(name), "load_adapter: an adapter named '{}' is loaded already", name);
  const adapters::Adapter adapter = adapters::read_adapter(model_->decoder->spec(), path);
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
