// The list of families, and how class names and transformers' --optim strings lead to them.
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "optim/family.h"

namespace nibble::optim {

std::span<const Family* const> families() {
  static constexpr std::array list{
      &kAdam, &kAdamW, &kAdemamix, &kLion, &kSgd, &kLars, &kLamb, &kRmsprop, &kAdagrad,
  };
  return list;
}

namespace {

/// adamw_torch and its kin are the same formula; what torch adds to the name is about its kernels.
constexpr std::array<std::pair<std::string_view, std::string_view>, 22> kOptims{{
    {"adagrad", "Adagrad32bit"},
    {"adamw_8bit", "AdamW8bit"},
    {"adamw_bnb_8bit", "AdamW8bit"},
    {"adamw_torch", "AdamW32bit"},
    {"adamw_torch_fused", "AdamW32bit"},
    {"ademamix", "AdEMAMix32bit"},
    {"ademamix_8bit", "AdEMAMix8bit"},
    {"lion_32bit", "Lion32bit"},
    {"lion_8bit", "Lion8bit"},
    {"paged_adamw", "PagedAdamW32bit"},
    {"paged_adamw_32bit", "PagedAdamW32bit"},
    {"paged_adamw_8bit", "PagedAdamW8bit"},
    {"paged_ademamix", "PagedAdEMAMix32bit"},
    {"paged_ademamix_32bit", "PagedAdEMAMix32bit"},
    {"paged_ademamix_8bit", "PagedAdEMAMix8bit"},
    {"paged_lion_32bit", "PagedLion32bit"},
    {"paged_lion_8bit", "PagedLion8bit"},
    {"rmsprop", "RMSprop32bit"},
    {"rmsprop_bnb", "RMSprop32bit"},
    {"rmsprop_bnb_32bit", "RMSprop32bit"},
    {"rmsprop_bnb_8bit", "RMSprop8bit"},
    {"sgd", "SGD32bit"},
}};

/// What transformers serves beside them, by whose work.
constexpr std::array<std::pair<std::string_view, std::string_view>, 13> kForeignOptims{{
    {"adafactor", "its own Adafactor"},
    {"adalomo", "lomo_optim"},
    {"adamw_anyprecision", "torchdistx"},
    {"adamw_torch_4bit", "torchao"},
    {"adamw_torch_8bit", "torchao; bitsandbytes' is adamw_8bit"},
    {"adamw_torch_npu_fused", "torch_npu"},
    {"adamw_torch_xla", "torch_xla"},
    {"apollo_", "apollo_torch"},
    {"galore_", "galore_torch"},
    {"grokadamw", "grokadamw"},
    {"lomo", "lomo_optim"},
    {"schedule_free_", "schedulefree"},
    {"stable_adamw", "torch-optimi"},
}};

std::vector<std::string_view> family_names() {
  std::vector<std::string_view> names;
  for (const Family* family : families()) names.push_back(family->name);
  return names;
}

}  // namespace

Choice choose(std::string_view class_name) {
  std::string_view rest = class_name;
  Choice choice{nullptr, 0, rest.starts_with("Paged")};
  if (choice.is_paged) rest.remove_prefix(5);
  for (const auto& [suffix, bits] : {std::pair<std::string_view, int>{"8bit", 8}, {"32bit", 32}})
    if (rest.ends_with(suffix)) {
      choice.bits = bits;
      rest.remove_suffix(suffix.size());
    }
  for (const Family* family : families())
    if (family->name == rest && (family->is_paged_too || !choice.is_paged)) choice.family = family;
  if (!choice.family)
    fail(ErrorCode::invalid_argument,
         "optimizer '{}': expected one of {}, then nothing, 8bit or 32bit; Adam, AdamW, AdEMAMix and Lion also with "
         "Paged in front",
         class_name, fmt::join(family_names(), ", "));
  return choice;
}

std::string_view class_of_optim(std::string_view optim) {
  for (const auto& [name, class_name] : kOptims)
    if (name == optim) return class_name;
  for (const auto& [name, source] : kForeignOptims)
    if (name == optim || (name.ends_with('_') && optim.starts_with(name)))
      fail(ErrorCode::invalid_argument,
           "optim '{}': transformers takes it from {}, it is not served here; expected one of {}", optim, source,
           fmt::join(optim_names(), ", "));
  fail(ErrorCode::invalid_argument, "optim '{}': expected one of {}", optim, fmt::join(optim_names(), ", "));
}

}  // namespace nibble::optim

namespace nibble {

std::vector<std::string> optim_names() {
  std::vector<std::string> names;
  names.reserve(std::size(optim::kOptims));
  for (const auto& [name, class_name] : optim::kOptims) names.emplace_back(name);
  return names;
}

Optimizer optimizer_for(std::string_view optim, std::vector<ParameterGroup> groups, const OptimizerOptions& options,
                        int threads, std::string_view device) {
  const std::string_view name = optim::class_of_optim(optim);
  OptimizerOptions all = options;
  if (name == "SGD32bit" && !all.momentum) all.momentum = 0;
  if (optim.find("lion") != std::string_view::npos && all.betas.empty()) all.betas = {0.9, 0.999};
  return Optimizer(name, std::move(groups), all, threads, device);
}

}  // namespace nibble
