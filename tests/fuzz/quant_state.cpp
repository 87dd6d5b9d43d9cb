// A safetensors file from bytes, read as if each of its tensors were a quantized weight.
#include "checkpoint/quant_state.h"

#include <string>

#include "fuzz_target.h"

namespace {

void touch_4bit(const nibble::Checkpoint& checkpoint, const std::string& name) {
  const auto state = nibble::find_4bit(checkpoint, name);
  if (!state) return;
  nibble::touch(state->packed.bytes());
  nibble::touch(state->absmax.bytes());
  if (state->is_nested) nibble::touch(state->nested_absmax.bytes());
  if (nibble::quant_state_json(*state).empty()) __builtin_trap();
}

void touch_int8(const nibble::Checkpoint& checkpoint, const std::string& name) {
  const auto stored = nibble::find_int8(checkpoint, name);
  if (!stored) return;
  nibble::touch(stored->values.bytes());
  nibble::touch(stored->absmax.bytes());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  return expect_no_crash([&] {
    const auto checkpoint = Checkpoint::parse(bytes_of(data, size), "input");
    for (const auto& info : checkpoint->tensors()) {
      const std::string name = info.name.substr(0, info.name.find(".quant_state"));
      expect_no_crash([&] { touch_4bit(*checkpoint, name); });
      expect_no_crash([&] { touch_int8(*checkpoint, name); });
    }
  });
}
