// LoRA adapters in the words of PEFT: which layers get one, of what rank, and how it starts.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "nibble/types.h"

namespace nibble {

/// Field names, defaults and rules as PEFT's LoraConfig. A field that PEFT has and this struct lacks is refused when an
/// adapter_config.json sets it to something else than its default.
struct LoraConfig {
  int64_t r = 8;  // rank
  double lora_alpha = 8;
  double lora_dropout = 0;  // on the adapter's input, while training
  /// Module names (a whole name, or what follows its last dots), or a regular expression for whole names, or
  /// "all-linear": every linear layer but the output head. Empty: the query and value projections.
  std::variant<std::vector<std::string>, std::string> target_modules{};
  std::variant<std::vector<std::string>, std::string> exclude_modules{};
  bool use_rslora = false;                        // scale by alpha / sqrt(r) instead of alpha / r (Kalajdzievski, 2023)
  std::map<std::string, int64_t> rank_pattern{};  // a regular expression for the end of a name -> r
  std::map<std::string, double> alpha_pattern{};  // the same for lora_alpha
  std::vector<int64_t> layers_to_transform{};     // layer numbers; empty: all
  /// "default": A uniform in +-1 / sqrt(in), B zero. "gaussian": A normal with deviation 1 / r, B zero. "random": both
  /// uniform, so that the adapter changes the model from the start (PEFT's false). "loftq": B A is near what
  /// quantization took from the weights (Li et al., 2023). "pissa", or with N rounds of a faster method
  /// "pissa_niter_N": the largest part of each weight, which is taken off the weight itself (Meng et al., 2024).
  /// "olora": its part along an orthonormal basis of its first columns, taken off, too (Büyükakyüz, 2024).
  std::string init_lora_weights = "default";
  std::string bias = "none";  // which biases are trained: "none", "all", or "lora_only": of the targets
  std::vector<std::string> modules_to_save{};  // ends of names of modules that are trained whole, beside the targets
  bool use_dora = false;                       // rows of the updated weight have a trained length (Liu et al., 2024)

  /// Errors: invalid_argument naming the field, what was found and what was expected.
  void validate() const;
};

}  // namespace nibble
