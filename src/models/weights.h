// Parameters in memory: streamed from a checkpoint, quantized tensor by tensor, or used straight from the mapped file.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "models/quantization.h"
#include "models/spec.h"
#include "nibble/model.h"
#include "nn/linear.h"
#include "ops/backend.h"

namespace nibble::models {

struct WeightOptions {
  DType dtype = DType::f32;  // of what is not quantized
  Progress progress;
};

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

 private:
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
