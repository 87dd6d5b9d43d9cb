// The tokenizer inside a GGUF file as the text of a tokenizer.json and a tokenizer_config.json.
#pragma once

#include <string>

#include "base/json.h"
#include "checkpoint/gguf.h"

namespace nibble {

/// Byte-level BPE (tokenizer.ggml.model "gpt2") and SentencePiece BPE ("llama").
/// Errors: unsupported (tokenizer model or pre-tokenizer, named), corrupt_file.
std::string gguf_tokenizer_json(const GgufFile& file);

/// Special tokens, chat template and model_max_length.
Json gguf_tokenizer_config(const GgufFile& file);

}  // namespace nibble
