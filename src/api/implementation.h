// What stands behind AutoModelForCausalLM and AutoModelForSeq2SeqLM.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

#include "api/model_source.h"
#include "models/decoder.h"
#include "nibble/model.h"
#include "nibble/seq2seq.h"

namespace nibble {
namespace api {

/// A model in memory, what came beside it, and its adapters by name.
struct LoadedModel {
  ModelSource source;
  std::unique_ptr<models::Decoder> decoder;
  GenerationConfig generation_config;
  std::map<std::string, std::shared_ptr<const models::Updates>> adapters;
  std::string active_adapter;  // empty: none

  void load_adapter(const std::filesystem::path& path, const std::string& name);
  void set_adapter(const std::string& name);
  void disable_adapter();
  /// save_pretrained, with `weights` in the place of the decoder's own.
  void save(const models::Weights& weights, const std::filesystem::path& path, int64_t max_shard_size_bytes) const;
};

}  // namespace api

struct AutoModelForCausalLM::Implementation : api::LoadedModel {
  /// Errors: invalid_argument for an id outside the vocabulary.
  void check_ids(std::span<const int32_t> ids) const;
};

struct AutoModelForSeq2SeqLM::Implementation : api::LoadedModel {
  int32_t start = 0;
};

}  // namespace nibble
