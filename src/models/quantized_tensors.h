// How a quantized weight lies in a safetensors file: the tensors that stand for it, planned before they are written.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/cancel.h"
#include "checkpoint/safetensors_writer.h"
#include "nibble/model.h"
#include "ops/quantize.h"

namespace nibble::models {

/// Bytes to set aside for the quant_state of a weight that is not quantized yet: its offset is not known.
int64_t state_json_room(ops::Tensor4Bit weight);
/// Bytes of the quant_state of a weight as it is.
int64_t state_json_size(const ops::Tensor4Bit& weight);

/// A 4-bit weight without data, for planning.
ops::Tensor4Bit blueprint(const BitsAndBytesConfig& config, const Shape& shape, DType dtype);

/// Appends the tensors of a 4-bit weight in the order they are written; the quant_state takes `json_bytes`.
/// Errors: invalid_argument if `storage` does not divide the packed bytes.
void plan_4bit(const std::string& name, const ops::Tensor4Bit& weight, int64_t json_bytes, DType storage,
               std::vector<PlannedTensor>& plan);
void write_4bit(const std::string& name, const ops::Tensor4Bit& weight, int64_t json_bytes, SafetensorsWriter& writer);

/// The same for LLM.int8(): `module` names the scales.
void plan_int8(const std::string& module, const std::string& name, const Shape& shape,
               std::vector<PlannedTensor>& plan);
void write_int8(const std::string& module, const std::string& name, const ops::TensorInt8& weight,
                SafetensorsWriter& writer);

/// Reports how many parameters of how many are written, and stops on request between two.
struct Steps {
  const Progress& progress;
  std::string_view stage;
  uint64_t total;
  uint64_t done = 0;

  void next() {
    throw_if_cancelled();
    if (progress) progress(stage, done, total);
    ++done;
  }
  void finish() const {
    if (progress) progress(stage, total, total);
  }
};

}  // namespace nibble::models
