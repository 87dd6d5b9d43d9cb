// The tensors of a checkpoint to be written: quantizing, dequantizing or saving what is in memory, one at a time.
#pragma once

#include <memory>
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

/// Every parameter as `dtype`.
std::vector<PlannedTensor> plan_dequantized(const ModelSpec& spec, DType dtype);
/// Returns the number of tensors that were quantized.
int64_t write_dequantized(const ModelSpec& spec, const Checkpoint& checkpoint, DType dtype, const ops::Backend& backend,
                          SafetensorsWriter& writer, const Progress& progress);

/// config.json of what write_quantized and write_dequantized write.
Json quantized_config(Json config, const ModelSpec& spec, const QuantizationPlan& plan, DType dtype);
Json dequantized_config(Json config, DType dtype);

/// What a loaded model holds, for save_pretrained.
std::vector<PlannedTensor> plan_saved(const ModelSpec& spec, const Weights& weights);
void write_saved(const ModelSpec& spec, const Weights& weights, const ops::Backend& backend, SafetensorsWriter& writer);

}  // namespace nibble::models
