// Vocabularies of bytes with ranks: Mistral's tekken.json, and the rank files of tiktoken that Llama 3 and 4 come with.
#pragma once

#include <string_view>

#include "tokenizer/pipeline.h"

namespace nibble {

/// tekken.json. Errors: corrupt_file (with `source`).
PipelineSteps read_tekken(std::string_view text, std::string_view source);

/// Lines of "base64 rank". Such a file names neither its pattern nor its special tokens: those of Llama 3 and Llama 4
/// are known by the number of ranks. Errors: corrupt_file, unsupported (another number of ranks).
PipelineSteps read_tiktoken(std::string_view text, std::string_view source);

/// Whether the first line looks like one of a rank file.
bool is_tiktoken(std::string_view text);

}  // namespace nibble
