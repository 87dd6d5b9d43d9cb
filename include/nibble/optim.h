// Optimizers with 32-bit and 8-bit states, by the names of bitsandbytes' classes.
//
// Sources: Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), AdEMAMix (Pagliardini et al. 2024), Lion (Chen et
// al. 2023), LAMB (You et al. 2020), LARS (You et al. 2017), RMSprop (Tieleman & Hinton 2012), Adagrad (Duchi et al.
// 2011); 8-bit states by blocks of 256: Dettmers et al. 2022. The formulas stand in docs/formats/optimizer_state.md.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/types.h"

namespace nibble {

/// An array to train, with its gradient, both in the memory of the optimizer's device. The memory stays the caller's;
/// both pointers may be changed between steps.
struct TrainableParameter {
  std::string name;  // unique in an optimizer
  std::vector<int64_t> shape;
  void* data = nullptr;  // f32, bf16 or f16, row-major
  DType dtype = DType::f32;
  const void* grad = nullptr;  // f32, bf16 or f16, as long; null: the step passes it by
  DType grad_dtype = DType::f32;
};

/// Hyper-parameters by bitsandbytes' names. What is not given comes from the class (docs/formats/optimizer_state.md);
/// one that the class has no use for is an error.
struct OptimizerOptions {
  std::optional<double> lr{};
  std::vector<double> betas{};  // Adam, AdamW, LAMB, Lion: 2; AdEMAMix: 3
  std::optional<double> eps{};
  std::optional<double> weight_decay{};  // Adam, AdamW, AdEMAMix, LAMB, Lion: decoupled; others: added to the gradient
  std::optional<double> momentum{};      // SGD, LARS: required
  std::optional<double> alpha{};         // RMSprop: smoothing; AdEMAMix: weight of the slow average
  std::optional<int64_t> t_alpha{};      // AdEMAMix: steps until alpha is reached
  std::optional<int64_t> t_beta3{};      // AdEMAMix: steps until the third beta is reached
  std::optional<double> max_unorm{};     // LAMB, LARS: the largest |update| / |parameter|; 0: no limit
  std::optional<int> optim_bits{};       // 32 or 8; fixed by names that end in 8bit or 32bit
  std::optional<int64_t> min_8bit_size{};    // smaller parameters keep 32-bit states (4096)
  std::optional<int> percentile_clipping{};  // 1 to 100 (100: off): gradients above that percentile of the norms of
                                             // the last 100 steps are scaled down to it
};

/// Parameters that share options, which go before those of the optimizer.
struct ParameterGroup {
  std::vector<TrainableParameter> params;
  OptimizerOptions options{};
};

/// One of bitsandbytes' optimizers. Same inputs, same bits: on any number of threads, with any instruction set, and
/// after save() and load(). Not thread-safe.
///
/// A step moves each parameter by its gradient; weight decay of Adam, AdamW, AdEMAMix, LAMB and Lion multiplies the
/// parameter by 1 - lr * weight_decay first; the result is rounded once. Gradients with NaN or Inf: 32-bit states and
/// their parameters take them on, as in torch; with 8-bit states, the element is left as it was and its states become
/// 0.
///
/// Paged classes give the same bits. On a GPU their states stay in its memory while there is room: where an allocation
/// of this process would fail, they leave it for good. Then they lie in the main memory, locked there, and pass through
/// a few pages of the GPU's memory: the next page comes in and the last goes out while one is worked on. On a CPU,
/// states already lie in the memory that paging would move them to.
///
/// On a GPU, a step returns when its work is in the order of the GPU's stream.
class Optimizer {
 public:
  /// `name`: {Adam, AdamW, AdEMAMix, Lion, SGD, LARS, LAMB, RMSprop, Adagrad}, then nothing, "8bit" or "32bit"; the
  /// first four also with "Paged" in front. `threads`: 0 means one per CPU. `device`: "cpu", "cuda" or "cuda:N".
  /// Errors: invalid_argument (name, an option, a parameter's dtype, a name given twice, no parameters, no
  /// such GPU); device.
  Optimizer(std::string_view name, std::vector<ParameterGroup> groups, const OptimizerOptions& options = {},
            int threads = 0, std::string_view device = "cpu");
  Optimizer(Optimizer&&) noexcept;
  Optimizer& operator=(Optimizer&&) noexcept;
  ~Optimizer();

  /// GlobalOptimManager: options of one parameter, before those of its group. Errors: not_found; invalid_argument
  /// (an option; after the parameter's first step).
  void override_config(std::string_view parameter, const OptimizerOptions& options);

  /// Every parameter with a gradient moves once, by gradient * gradient_scale. Errors: invalid_argument (a null
  /// pointer, a dtype; nothing has moved then); out_of_memory; device.
  void step(double gradient_scale = 1);
  /// Waits until steps are done, on a GPU. Errors: device, if one failed.
  void synchronize() const;
  /// sqrt(sum of squares) over the gradients of all parameters, in double.
  double gradient_norm() const;
  /// What brings that norm down to max_norm, for step(): min(1, max_norm / (norm + 1e-6)), as in torch's
  /// clip_grad_norm_. NaN if the norm is. Errors: invalid_argument unless max_norm > 0.
  double clip_scale(double max_norm) const;

  /// Groups in their order; parameters numbered through all groups.
  std::vector<ParameterGroup>& groups();
  double lr(size_t group = 0) const;
  void set_lr(double lr);
  void set_lr(size_t group, double lr);
  /// "AdamW", 8 or 32, paged or not: as the name said, or options.
  std::string_view family() const;
  bool is_paged() const;
  /// Bits of a parameter's states: 32 below min_8bit_size. Errors: not_found.
  int state_bits(std::string_view parameter) const;
  /// Bytes of all states that exist; they are made at a parameter's first step.
  int64_t state_size_bytes() const;

  /// A safetensors file with the state dictionary that bitsandbytes keeps (docs/formats/optimizer_state.md); appears
  /// whole or not at all. `path` ends in .safetensors. Errors: invalid_argument, io.
  void save(const std::filesystem::path& path) const;
  /// Errors: not_found, corrupt_file; invalid_argument (another optimizer, other parameters). Nothing changes then.
  void load(const std::filesystem::path& path);

  struct State;
  State& state() const { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

/// An optimizer for one of transformers' --optim strings: adamw_8bit, paged_adamw_32bit, lion_8bit, ... (optim_names),
/// with the options that its Trainer passes where they are not the class's: Lion's betas .9 .999, SGD's momentum 0.
/// Errors: invalid_argument, listing them; as the constructor.
Optimizer optimizer_for(std::string_view optim, std::vector<ParameterGroup> groups,
                        const OptimizerOptions& options = {}, int threads = 0, std::string_view device = "cpu");

/// The strings that optimizer_for takes, sorted.
std::vector<std::string> optim_names();

/// lr = base lr * factor(step), by transformers' lr_scheduler_type: "linear", "cosine", "constant",
/// "constant_with_warmup". The first step is 0.
struct LearningRateSchedule {
  std::string type = "linear";
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;  // linear, cosine
  double num_cycles = 0.5;  // cosine: half a wave down to 0
  /// Errors: invalid_argument (type, negative steps).
  void validate() const;
  /// Errors: as validate; invalid_argument (a negative step).
  double factor(int64_t step) const;
};

/// A class name as a template argument.
template <size_t N>
struct OptimizerName {
  char text[N];
  constexpr OptimizerName(const char (&literal)[N]) { std::copy_n(literal, N, text); }
};

/// The constructor of Optimizer without its name.
template <OptimizerName name>
class NamedOptimizer : public Optimizer {
 public:
  explicit NamedOptimizer(std::vector<ParameterGroup> groups, const OptimizerOptions& options = {}, int threads = 0,
                          std::string_view device = "cpu")
      : Optimizer(name.text, std::move(groups), options, threads, device) {}
};

using Adam = NamedOptimizer<"Adam">;
using Adam8bit = NamedOptimizer<"Adam8bit">;
using Adam32bit = NamedOptimizer<"Adam32bit">;
using PagedAdam = NamedOptimizer<"PagedAdam">;
using PagedAdam8bit = NamedOptimizer<"PagedAdam8bit">;
using PagedAdam32bit = NamedOptimizer<"PagedAdam32bit">;
using AdamW = NamedOptimizer<"AdamW">;
using AdamW8bit = NamedOptimizer<"AdamW8bit">;
using AdamW32bit = NamedOptimizer<"AdamW32bit">;
using PagedAdamW = NamedOptimizer<"PagedAdamW">;
using PagedAdamW8bit = NamedOptimizer<"PagedAdamW8bit">;
using PagedAdamW32bit = NamedOptimizer<"PagedAdamW32bit">;
using AdEMAMix = NamedOptimizer<"AdEMAMix">;
using AdEMAMix8bit = NamedOptimizer<"AdEMAMix8bit">;
using AdEMAMix32bit = NamedOptimizer<"AdEMAMix32bit">;
using PagedAdEMAMix = NamedOptimizer<"PagedAdEMAMix">;
using PagedAdEMAMix8bit = NamedOptimizer<"PagedAdEMAMix8bit">;
using PagedAdEMAMix32bit = NamedOptimizer<"PagedAdEMAMix32bit">;
using Lion = NamedOptimizer<"Lion">;
using Lion8bit = NamedOptimizer<"Lion8bit">;
using Lion32bit = NamedOptimizer<"Lion32bit">;
using PagedLion = NamedOptimizer<"PagedLion">;
using PagedLion8bit = NamedOptimizer<"PagedLion8bit">;
using PagedLion32bit = NamedOptimizer<"PagedLion32bit">;
using SGD = NamedOptimizer<"SGD">;
using SGD8bit = NamedOptimizer<"SGD8bit">;
using SGD32bit = NamedOptimizer<"SGD32bit">;
using LARS = NamedOptimizer<"LARS">;
using LARS8bit = NamedOptimizer<"LARS8bit">;
using LARS32bit = NamedOptimizer<"LARS32bit">;
using LAMB = NamedOptimizer<"LAMB">;
using LAMB8bit = NamedOptimizer<"LAMB8bit">;
using LAMB32bit = NamedOptimizer<"LAMB32bit">;
using RMSprop = NamedOptimizer<"RMSprop">;
using RMSprop8bit = NamedOptimizer<"RMSprop8bit">;
using RMSprop32bit = NamedOptimizer<"RMSprop32bit">;
using Adagrad = NamedOptimizer<"Adagrad">;
using Adagrad8bit = NamedOptimizer<"Adagrad8bit">;
using Adagrad32bit = NamedOptimizer<"Adagrad32bit">;

}  // namespace nibble
