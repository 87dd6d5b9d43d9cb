// Quantizing a model that nibble cannot run: vision, speech, encoders. Its linear layers are told from the tensors'
// names.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_writer.h"
#include "nibble/model.h"
#include "ops/backend.h"

namespace nibble::models {

/// Which weights of a checkpoint are quantized. Any model whose linear layers are torch.nn.Linear.
struct ForeignPlan {
  BitsAndBytesConfig config;           // with llm_int8_skip_modules: every two-dimensional weight that is left alone
  std::vector<std::string> quantized;  // modules, in the checkpoint's order
};

/// `modules`: a regular expression that a module's whole name must match. Without it: every module with a
/// two-dimensional weight but embeddings, output heads and what config.llm_int8_skip_modules names.
/// Errors: invalid_argument if nothing is left to quantize, or for a broken expression.
ForeignPlan plan_foreign(const Checkpoint& checkpoint, const BitsAndBytesConfig& config,
                         const std::optional<std::string>& modules);

/// As plan_quantized and write_quantized. `dtype`: of float tensors that are not quantized; nullopt: as they are
/// stored.
std::vector<PlannedTensor> plan_foreign_tensors(const Checkpoint& checkpoint, const ForeignPlan& plan,
                                                std::optional<DType> dtype);
void write_foreign(const Checkpoint& checkpoint, const ForeignPlan& plan, std::optional<DType> dtype,
                   const ops::Backend& backend, SafetensorsWriter& writer, const Progress& progress);

}  // namespace nibble::models
