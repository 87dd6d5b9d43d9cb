// The functions that registry.cpp lists, one per architecture: a config becomes a ModelSpec.
#pragma once

#include "models/config_reader.h"
#include "models/spec.h"

namespace nibble::models {

ModelSpec bloom(const ConfigReader& config);
ModelSpec falcon(const ConfigReader& config);
ModelSpec gemma(const ConfigReader& config);
ModelSpec gemma2(const ConfigReader& config);
ModelSpec gemma3(const ConfigReader& config);
ModelSpec gpt2(const ConfigReader& config);
ModelSpec gpt_bigcode(const ConfigReader& config);
ModelSpec gpt_neo(const ConfigReader& config);
ModelSpec gpt_neox(const ConfigReader& config);
ModelSpec gptj(const ConfigReader& config);
ModelSpec llama(const ConfigReader& config);
ModelSpec mistral(const ConfigReader& config);
ModelSpec mixtral(const ConfigReader& config);
ModelSpec mpt(const ConfigReader& config);
ModelSpec olmo2(const ConfigReader& config);
ModelSpec opt(const ConfigReader& config);
ModelSpec phi(const ConfigReader& config);
ModelSpec phi3(const ConfigReader& config);
ModelSpec qwen2(const ConfigReader& config);
ModelSpec qwen3(const ConfigReader& config);
ModelSpec smollm3(const ConfigReader& config);
ModelSpec stablelm(const ConfigReader& config);
ModelSpec starcoder2(const ConfigReader& config);
ModelSpec t5(const ConfigReader& config);

}  // namespace nibble::models
