// Whole-checkpoint work: quantize, dequantize, merge an adapter, convert from GGUF. Every output directory appears
// whole or not at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/model.h"
#include "nibble/types.h"

namespace nibble {

struct CheckpointReport {
  int64_t bytes_in = 0;
  int64_t bytes_out = 0;
  double seconds = 0;
  int64_t peak_rss_bytes = 0;
  int64_t tensors = 0;
  int64_t quantized_tensors = 0;
};

struct QuantizeOptions {
  BitsAndBytesConfig quantization_config{};
  std::optional<DType> dtype{};  // of what is not quantized
  /// A regular expression: only modules whose whole names match are quantized.
  std::optional<std::string> modules{};
  int64_t max_shard_size_bytes = int64_t{5} << 30;
  std::string device = "cpu";  // that quantizes: "cpu", "cuda" or "cuda:N"
  int threads = 0;
  Progress progress{};
  std::function<void(std::string_view)> warning{};
};

/// Writes a pre-quantized checkpoint that transformers + bitsandbytes loads. Streams: one tensor in memory at a time.
/// A model of an architecture that nibble does not run is quantized as well, with a warning: every module with a
/// two-dimensional weight but embeddings and output heads, or those that `modules` names.
/// Errors: as from_pretrained; invalid_argument if `out` exists or the model is quantized already; io.
CheckpointReport quantize_checkpoint(const std::filesystem::path& model, const std::filesystem::path& out,
                                     const QuantizeOptions& options);

/// The way back: every quantized tensor to `dtype`, quantization_config removed from config.json.
CheckpointReport dequantize_checkpoint(const std::filesystem::path& model, const std::filesystem::path& out,
                                       DType dtype = DType::bf16, int threads = 0, const Progress& progress = {});

struct MergeOptions {
  /// Of the weights; nullopt: the model's own type.
  std::optional<DType> dtype{};
  /// A quantized model stays so: what the adapter changes is dequantized, changed and quantized again, as PEFT's merge
  /// does, with its loss. Otherwise a plain checkpoint is written.
  bool requantize = false;
  int64_t max_shard_size_bytes = int64_t{5} << 30;
  int threads = 0;
  Progress progress{};
};

/// Adds an adapter that PEFT or finetune wrote to the weights of the model it was trained on.
/// Errors: as load_adapter; invalid_argument if `out` exists, or for requantize where the model is not quantized.
CheckpointReport merge_checkpoint(const std::filesystem::path& model, const std::filesystem::path& adapter,
                                  const std::filesystem::path& out, const MergeOptions& options = {});

/// A GGUF file as a Hugging Face directory (config.json, tokenizer, weights in `dtype`).
/// Errors: corrupt_file, unsupported (architecture or tensor type, named).
CheckpointReport convert_gguf(const std::filesystem::path& gguf, const std::filesystem::path& out,
                              DType dtype = DType::bf16, const Progress& progress = {});

}  // namespace nibble
