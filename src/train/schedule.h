// Which samples a step trains on: an epoch is a shuffled list of rows, cut into batches and steps.
#pragma once

#include <cstdint>
#include <vector>

#include "nibble/train.h"
#include "train/model.h"

namespace nibble::train {

/// The micro-batches of every step, in order; the same for the same seed, so that a run can go on from any step.
class StepPlan {
 public:
  StepPlan(const Dataset& dataset, const TrainingArguments& arguments);

  int64_t total_steps() const { return total_steps_; }
  double epoch_of(int64_t step) const;
  /// The micro-batches of a step, the first of which is 0.
  std::vector<Batch> batches_of(int64_t step);

 private:
  void prepare_epoch(int64_t epoch);
  const Dataset& dataset_;
  const TrainingArguments& arguments_;
  int64_t steps_per_epoch_ = 0;
  int64_t total_steps_ = 0;
  int64_t prepared_ = -1;
  std::vector<std::vector<size_t>> rows_;  // of the prepared epoch
};

/// Samples one after the other.
Batch make_batch(const Dataset& dataset, std::span<const size_t> samples);

}  // namespace nibble::train
