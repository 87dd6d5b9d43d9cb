// Lines of JSON become samples: what each kind of line holds, and which of its tokens are to be predicted.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nibble/train.h"

namespace nibble::train {

/// What of a tokenizer is needed.
struct TextEncoder {
  std::function<std::vector<int32_t>(std::string_view text, bool add_special_tokens)> encode;
  std::function<std::string(std::span<const ChatMessage> messages, bool add_generation_prompt)> render;
  std::optional<int32_t> eos;
};

/// Errors: as Dataset::from_jsonl.
Dataset read_jsonl(const std::filesystem::path& path, const TextEncoder& encoder, const DatasetOptions& options);

/// Samples in rows of at most `length` tokens, each row's samples in order of `order`: first fit.
std::vector<std::vector<size_t>> pack(const Dataset& dataset, std::span<const size_t> order, int64_t length);

}  // namespace nibble::train
