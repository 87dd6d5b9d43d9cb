// Epochs are shuffled by Fisher and Yates from a seed of their own.
#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.h"
#include "train/dataset.h"

namespace nibble::train {

Batch make_batch(const Dataset& dataset, std::span<const size_t> samples) {
  Batch batch;
  for (const size_t index : samples) {
    const Dataset::Sample& sample = dataset.samples[index];
    const size_t count = sample.ids.size();
    batch.ids.insert(batch.ids.end(), sample.ids.begin(), sample.ids.end());
    for (size_t t = 0; t < count; ++t)
      batch.targets.push_back(t + 1 < count && sample.is_target[t + 1] ? sample.ids[t + 1] : -100);
    batch.lengths.push_back(static_cast<int64_t>(count));
    if (sample.source.empty()) continue;
    batch.source_ids.insert(batch.source_ids.end(), sample.source.begin(), sample.source.end());
    batch.source_lengths.push_back(static_cast<int64_t>(sample.source.size()));
  }
  return batch;
}

StepPlan::StepPlan(const Dataset& dataset, const TrainingArguments& arguments)
    : dataset_(dataset), arguments_(arguments) {
  prepare_epoch(0);
  const int64_t rows_per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps;
  steps_per_epoch_ = (static_cast<int64_t>(rows_.size()) + rows_per_step - 1) / rows_per_step;
  total_steps_ =
      arguments.max_steps > 0
          ? arguments.max_steps
          : static_cast<int64_t>(std::ceil(arguments.num_train_epochs * static_cast<double>(steps_per_epoch_)));
}

double StepPlan::epoch_of(int64_t step) const {
  return static_cast<double>(step) / static_cast<double>(steps_per_epoch_);
}

void StepPlan::prepare_epoch(int64_t epoch) {
  if (prepared_ == epoch) return;
  prepared_ = epoch;
  std::vector<size_t> order(dataset_.samples.size());
  std::iota(order.begin(), order.end(), size_t{0});
  Random random(arguments_.seed + static_cast<uint64_t>(epoch) * 0x9e3779b97f4a7c15u);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.next() % i]);
  rows_.clear();
  if (arguments_.packing) {
    rows_ = pack(dataset_, order, arguments_.packing_length);
  } else {
    for (const size_t index : order) rows_.push_back({index});
  }
}

std::vector<Batch> StepPlan::batches_of(int64_t step) {
  const int64_t epoch = step / steps_per_epoch_, within = step % steps_per_epoch_;
  prepare_epoch(epoch);
  const int64_t size = arguments_.per_device_train_batch_size;
  std::vector<Batch> batches;
  // Packed rows may be fewer in another epoch: a step past the last takes up from the first again.
  const auto rows = static_cast<int64_t>(rows_.size());
  const int64_t first = within * size * arguments_.gradient_accumulation_steps % rows;
  for (int64_t micro = 0; micro < arguments_.gradient_accumulation_steps; ++micro) {
    const int64_t begin = first + micro * size, end = std::min(rows, begin + size);
    if (begin >= end) break;
    std::vector<size_t> samples;
    for (int64_t row = begin; row < end; ++row)
      samples.insert(samples.end(), rows_[static_cast<size_t>(row)].begin(), rows_[static_cast<size_t>(row)].end());
    batches.push_back(make_batch(dataset_, samples));
  }
  return batches;
}

}  // namespace nibble::train
