// bitsandbytes' per-tensor statistics in a checkpoint: names, bytes and JSON of a quantized weight (docs/formats/).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace nibble {

/// A 4-bit weight as stored: packed codes and their statistics, views of the checkpoint.
struct Stored4Bit {
  Tensor packed;            // u8 (bytes); from any quant_storage
  Tensor absmax;            // f32 (blocks), or u8 when nested
  Tensor nested_absmax;     // f32 (ceil(blocks / 256)), nested only
  Tensor nested_quant_map;  // f32 (256), nested only
  float nested_offset = 0;
  bool is_nested = false;
  std::string quant_type;  // "nf4" or "fp4"
  int64_t blocksize = 64;
  Shape shape;                // of the original
  DType dtype = DType::bf16;  // of the original
};

/// The 4-bit state of `name` ("model.layers.0.mlp.up_proj.weight"), or nullopt if that tensor is a plain one.
/// Every size is checked against the shape. Errors: corrupt_file naming tensor, found and expected.
std::optional<Stored4Bit> find_4bit(const Checkpoint& checkpoint, const std::string& name);

/// An LLM.int8() weight as stored.
struct StoredInt8 {
  Tensor values;  // i8 (rows, cols)
  Tensor absmax;  // f32 (rows): SCB
};
std::optional<StoredInt8> find_int8(const Checkpoint& checkpoint, const std::string& name);

/// The bytes of `<name>.quant_state.bitsandbytes__nf4`: Python's json.dumps of the state.
std::string quant_state_json(const Stored4Bit& state);

}  // namespace nibble
