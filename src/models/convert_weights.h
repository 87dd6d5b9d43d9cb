// The tensors of a checkpoint to be written: quantizing, dequantizing or saving what is in memory, one at a time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_writer.h"
#include "models/quantization.h"
#include "models/spec.h"
#include "models/weights.h"
#include "nibble/types.h"
#include "ops/backend.h"

namespace nibble::models {

/// The tensors that quantizing `spec` writes, in order: names, dtypes and shapes as bitsandbytes saves them.
std::vector<PlannedTensor> plan_quantized(const ModelSpec& spec, const QuantizationPlan& plan, DType dtype);

/// Streams checkpoint -> quantize -> writer in that order. Returns the number of quantized tensors.
/// Errors: as load_weights; invalid_argument if the checkpoint is quantized already.
int64_t write_quantized(const ModelSpec& spec, const Checkpoint& checkpoint, const QuantizationPlan& plan, DType dtype,
                        const ops::Backend& backend, SafetensorsWriter& writer, const Progress& progress);

/// Parameters that are changed on the way from one checkpoint to another.
struct ParameterEdits {
  std::function<bool(const std::string& name)> has;
  /// `value` is in f32; the weight of a linear layer is (out, in).
  std::function<void(const std::string& name, Tensor& value)> apply;
};

/// Every parameter as `dtype`.
std::vector<PlannedTensor> plan_dequantized(const ModelSpec& spec, DType dtype);
/// Returns the number of tensors that were quantized. `spec` is what is written, `stored` what the checkpoint holds:
/// they differ in what is tied.
int64_t write_dequantized(const ModelSpec& spec, const ModelSpec& stored, const Checkpoint& checkpoint, DType dtype,
                          const ops::Backend& backend, SafetensorsWriter& writer, const Progress& progress,
                          const ParameterEdits* edits = nullptr);

/// The plan of a checkpoint that is quantized: `config`, and the modules whose weights are stored so.
QuantizationPlan plan_of_stored(const ModelSpec& spec, const Checkpoint& checkpoint, const BitsAndBytesConfig& config);
/// Copies a quantized checkpoint, to what plan_quantized names; what `edits` changes is dequantized, changed and
/// quantized again. Returns the number of quantized tensors.
int64_t write_requantized(const ModelSpec& spec, const ModelSpec& stored, const Checkpoint& checkpoint,
                          const QuantizationPlan& plan, DType dtype, const ops::Backend& backend,
                          SafetensorsWriter& writer, const Progress& progress, const ParameterEdits& edits);

/// config.json of what write_quantized and write_dequantized write.
Json quantized_config(Json config, const ModelSpec& spec, const QuantizationPlan& plan, DType dtype);
Json dequantized_config(Json config, DType dtype);

/// What a loaded model holds, for save_pretrained.
std::vector<PlannedTensor> plan_saved(const ModelSpec& spec, const Weights& weights);
void write_saved(const ModelSpec& spec, const Weights& weights, const ops::Backend& backend, SafetensorsWriter& writer);

}  // namespace nibble::models
