// What stands behind AutoModelForCausalLM.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

#include "api/model_source.h"
#include "models/decoder.h"
#include "nibble/model.h"

namespace nibble {

struct AutoModelForCausalLM::Implementation {
  api::ModelSource source;
  std::unique_ptr<models::Decoder> decoder;
  GenerationConfig generation_config;
  std::map<std::string, std::shared_ptr<const models::Updates>> adapters;
  std::string active_adapter;  // empty: none

  /// Errors: invalid_argument for an id outside the vocabulary.
  void check_ids(std::span<const int32_t> ids) const;
  /// save_pretrained, with `weights` in the place of the decoder's own.
  void save(const models::Weights& weights, const std::filesystem::path& path, int64_t max_shard_size_bytes) const;
};

}  // namespace nibble
