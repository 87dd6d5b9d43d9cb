// The architectures, one line each.
#include "models/registry.h"

#include <array>

#include "models/arch/architectures.h"
#include "models/config_reader.h"

namespace nibble::models {

std::span<const Architecture> architectures() {
  // clang-format off
  static constexpr std::array kList{
      Architecture{"BloomForCausalLM", bloom},
      Architecture{"FalconForCausalLM", falcon},
      Architecture{"Gemma2ForCausalLM", gemma2},
      Architecture{"Gemma3ForCausalLM", gemma3},
      Architecture{"GemmaForCausalLM", gemma},
      Architecture{"GPT2LMHeadModel", gpt2},
      Architecture{"GPTBigCodeForCausalLM", gpt_bigcode},
      Architecture{"GPTJForCausalLM", gptj},
      Architecture{"GPTNeoForCausalLM", gpt_neo},
      Architecture{"GPTNeoXForCausalLM", gpt_neox},
      Architecture{"LlamaForCausalLM", llama},
      Architecture{"MistralForCausalLM", mistral},
      Architecture{"MixtralForCausalLM", mixtral},
      Architecture{"MPTForCausalLM", mpt},  // as published
      Architecture{"MptForCausalLM", mpt},
      Architecture{"Olmo2ForCausalLM", olmo2},
      Architecture{"OPTForCausalLM", opt},
      Architecture{"Phi3ForCausalLM", phi3},
      Architecture{"PhiForCausalLM", phi},
      Architecture{"Qwen2ForCausalLM", qwen2},
      Architecture{"Qwen3ForCausalLM", qwen3},
      Architecture{"SmolLM3ForCausalLM", smollm3},
      Architecture{"StableLmForCausalLM", stablelm},
      Architecture{"Starcoder2ForCausalLM", starcoder2},
      Architecture{"T5ForConditionalGeneration", t5},
  };
  // clang-format on
  return kList;
}

namespace {

std::string architecture_name(const Json& config, std::string_view source) {
  if (!config.is_object())
    fail(ErrorCode::corrupt_file, "{}: found {}, expected a JSON object", source, config.type_name());
  const auto names = config.find("architectures");
  if (names == config.end() || !names->is_array() || names->empty() || !names->front().is_string())
    fail(ErrorCode::corrupt_file, "{}: key 'architectures': expected a list with one name such as \"LlamaForCausalLM\"",
         source);
  return names->front().get<std::string>();
}

}  // namespace

const Architecture* find_architecture(const Json& config, std::string_view source) {
  const std::string name = architecture_name(config, source);
  for (const Architecture& architecture : architectures())
    if (architecture.name == name) return &architecture;
  return nullptr;
}

ModelSpec build_spec(const Json& config, std::string_view source) {
  if (const Architecture* found = find_architecture(config, source)) return found->build(ConfigReader(config, source));
  std::string known;
  for (const Architecture& architecture : architectures())
    known += (known.empty() ? "" : ", ") + std::string(architecture.name);
  fail(ErrorCode::unsupported, "{}: architecture '{}' is not supported; expected one of {}", source,
       architecture_name(config, source), known);
}

}  // namespace nibble::models
