// The best parameters are copies in main memory, in the order of the adapter's variables.
#include "train/early_stop.h"

#include <algorithm>
#include <span>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_writer.h"

namespace nibble::train {

bool EarlyStop::sees_best(double loss) {
  if (patience_ == 0) return false;
  if (has_best() && loss >= best_loss_) {
    ++worse_;
    return false;
  }
  best_loss_ = loss;
  worse_ = 0;
  return true;
}

void EarlyStop::keep(const std::vector<adapters::NamedVariable>& variables) {
  best_.clear();
  for (const auto& [name, variable] : variables)
    best_.emplace_back(variable->value.as<float>(), variable->value.as<float>() + variable->value.count());
}

void EarlyStop::restore(const std::vector<adapters::NamedVariable>& variables) const {
  for (size_t i = 0; i < best_.size(); ++i)
    std::copy(best_[i].begin(), best_[i].end(), variables[i].variable->value.as<float>());
}

void EarlyStop::write_best(const std::filesystem::path& directory,
                           const std::vector<adapters::NamedVariable>& variables) const {
  std::vector<PlannedTensor> planned;
  planned.reserve(variables.size());
  for (const auto& [name, variable] : variables) planned.push_back({name, DType::f32, variable->value.shape()});
  SafetensorsWriter writer(directory, planned, INT64_MAX, "best");
  for (size_t i = 0; i < best_.size(); ++i) writer.write(variables[i].name, std::as_bytes(std::span(best_[i])));
  writer.finish();
}

Json EarlyStop::to_json() const { return {{"best_loss", best_loss_}, {"worse", worse_}}; }

void EarlyStop::read(const Json& json, std::string_view source, const std::filesystem::path& directory,
                     const std::vector<adapters::NamedVariable>& variables) {
  best_loss_ = get_value<double>(json, "best_loss", source);
  worse_ = get_value<int64_t>(json, "worse", source);
  if (worse_ < 0) fail(ErrorCode::corrupt_file, "{}: key 'worse': found {}, expected 0 or more", source, worse_);
  const std::filesystem::path path = directory / "best.safetensors";
  const auto checkpoint = Checkpoint::open(path);
  for (const auto& [name, variable] : variables) {
    const TensorInfo* info = checkpoint->find(name);
    if (!info || info->shape != variable->value.shape() || info->dtype != DType::f32)
      fail(ErrorCode::corrupt_file, "{}: tensor '{}': expected it in float32, of shape {}", path.string(), name,
           to_string(variable->value.shape()));
    const Tensor value = checkpoint->get(name);
    best_.emplace_back(value.as<float>(), value.as<float>() + value.count());
  }
}

}  // namespace nibble::train
