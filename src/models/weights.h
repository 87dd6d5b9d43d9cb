// Parameters in memory: streamed from a checkpoint, quantized tensor by tensor, or used straight from the mapped file.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/quant_state.h"
#include "models/quantization.h"
#include "models/spec.h"
#include "nibble/model.h"
#include "nn/linear.h"
#include "ops/backend.h"

namespace nibble::models {

/// A type that plain weights may have.
inline bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

struct WeightOptions {
  DType dtype = DType::f32;      // of what is not quantized
  bool is_prequantized = false;  // then a linear weight that is stored plain stays plain
  Progress progress;
  std::function<void(std::string_view)> warning;
};

/// Whether a module's stored weight is quantized, and where it lies.
struct StoredWeight {
  std::string name;  // in the checkpoint
  std::optional<Stored4Bit> packed;
  std::optional<StoredInt8> rows;
  bool is_quantized() const { return packed || rows; }
};

/// As transformers: what the config ties, but the checkpoint holds as two different tensors, is two tensors.
void untie_different(ModelSpec& spec, const Checkpoint& checkpoint);

/// Finds parameter `name` with or without the base prefix or under its alias, its shape and type checked. `shape` is
/// that of the spec's parameter: a quantized weight `is_transposed` has its sides swapped. Errors: corrupt_file naming
/// tensor, found and expected.
StoredWeight find_stored(const Checkpoint& checkpoint, const ModelSpec& spec, const std::string& name,
                         const Shape& shape, bool is_transposed);

/// `x` as the plan stores it.
nn::Weight quantize_weight(const ops::Backend& backend, const Tensor& x, const BitsAndBytesConfig& config);
nn::Weight weight_from_stored(const StoredWeight& stored, const BitsAndBytesConfig& config);

/// Every parameter of a spec by name; tied names are resolved.
class Weights {
 public:
  const nn::Weight& get(const std::string& name) const;
  bool contains(const std::string& name) const { return parameters_.contains(name); }
  /// A parameter that is not quantized.
  const Tensor& dense(const std::string& name) const;
  /// Names in the order of the module tree.
  const std::vector<std::string>& names() const { return names_; }
  DType dtype() const { return dtype_; }
  const QuantizationPlan& plan() const { return plan_; }
  /// The same with other weights in the place of those of some modules; the rest is shared.
  Weights with(const std::unordered_map<std::string, nn::Weight>& modules) const;

 private:
  friend class WeightLoader;
  friend std::unique_ptr<Weights> load_weights(const ModelSpec&, std::shared_ptr<const Checkpoint>, QuantizationPlan,
                                               const ops::Backend&, const WeightOptions&);
  std::shared_ptr<const Checkpoint> checkpoint_;
  QuantizationPlan plan_;
  DType dtype_ = DType::f32;
  std::vector<std::string> names_;
  std::unordered_map<std::string, nn::Weight> parameters_;
};

/// Peak memory is the result plus the largest tensor. A weight that is stored quantized is used as it is.
/// Errors: corrupt_file naming tensor, found and expected; cancelled.
std::unique_ptr<Weights> load_weights(const ModelSpec& spec, std::shared_ptr<const Checkpoint> checkpoint,
                                      QuantizationPlan plan, const ops::Backend& backend, const WeightOptions& options);

}  // namespace nibble::models
