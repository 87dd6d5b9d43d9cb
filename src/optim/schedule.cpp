// Learning-rate schedules: the formulas of transformers' optimization.py.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "nibble/optim.h"

namespace nibble {

void LearningRateSchedule::validate() const {
  require(warmup_steps >= 0 && total_steps >= 0,
          "learning rate schedule: warmup_steps {}, total_steps {}: expected 0 or more", warmup_steps, total_steps);
  const bool is_known = type == "linear" || type == "cosine" || type == "constant" || type == "constant_with_warmup";
  require(is_known, "lr_scheduler_type: found '{}', expected linear, cosine, constant or constant_with_warmup", type);
}

double LearningRateSchedule::factor(int64_t step) const {
  validate();
  require(step >= 0, "learning rate schedule: step {}, expected 0 or more", step);
  if (type == "constant") return 1;
  const auto at = static_cast<double>(step), warmup = static_cast<double>(warmup_steps);
  if (step < warmup_steps) return at / std::max(1.0, warmup);
  if (type == "constant_with_warmup") return 1;
  const double rest = std::max(1.0, static_cast<double>(total_steps) - warmup);
  if (type == "linear") return std::max(0.0, (static_cast<double>(total_steps) - at) / rest);
  return std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * num_cycles * 2 * ((at - warmup) / rest))));
}

}  // namespace nibble
