// What a GGUF file's metadata says in the words of Hugging Face: architecture, config.json, generation_config.json,
// tensor names.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "checkpoint/gguf.h"

namespace nibble {

struct GgufArchitecture {
  const char* name;        // general.architecture
  const char* model_type;  // config.json
  const char* class_name;
  bool permutes_qk;  // rows of q and k are stored with the two halves of each head interleaved
};

/// Errors: unsupported (the architecture, named), corrupt_file.
const GgufArchitecture& gguf_architecture(const GgufFile& file);

/// config.json; `dtype` is that of the converted weights. Errors: corrupt_file (a missing key), unsupported (a RoPE
/// scaling).
Json gguf_config(const GgufFile& file, DType dtype);
Json gguf_generation_config(const GgufFile& file);

/// "blk.3.attn_q.weight" is "model.layers.3.self_attn.q_proj.weight"; nullopt for a tensor that is no parameter
/// (rope_freqs.weight). Errors: unsupported, naming the tensor.
std::optional<std::string> gguf_parameter_name(const GgufFile& file, std::string_view tensor);

/// Rows of q and k projections that belong to one head.
int64_t gguf_head_dim(const GgufFile& file);

}  // namespace nibble
