// Stops a run that no longer gets better, and keeps its best parameters.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "adapters/lora.h"
#include "base/json.h"

namespace nibble::train {

/// `patience`: evaluations in a row without a better loss; 0: never.
class EarlyStop {
 public:
  explicit EarlyStop(int64_t patience) : patience_(patience) {}

  bool is_over() const { return patience_ > 0 && worse_ >= patience_; }
  bool has_best() const { return !best_.empty(); }
  double best_loss() const { return best_loss_; }
  /// Counts an evaluation; true if it is the best and its parameters are to be kept.
  bool sees_best(double loss);
  void keep(const std::vector<adapters::NamedVariable>& variables);
  void restore(const std::vector<adapters::NamedVariable>& variables) const;

  /// For checkpoints: the parameters in `directory`/best.safetensors, and the rest.
  void write_best(const std::filesystem::path& directory, const std::vector<adapters::NamedVariable>& variables) const;
  Json to_json() const;
  /// `source` is where `json` stands. Errors: not_found, corrupt_file.
  void read(const Json& json, std::string_view source, const std::filesystem::path& directory,
            const std::vector<adapters::NamedVariable>& variables);

 private:
  int64_t patience_;
  std::vector<std::vector<float>> best_;
  double best_loss_ = 0;
  int64_t worse_ = 0;
};

}  // namespace nibble::train
