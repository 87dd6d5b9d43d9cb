// The training loop over an adapter: steps, evaluation, checkpoints.
#pragma once

#include <functional>
#include <optional>

#include "adapters/lora.h"
#include "models/decoder.h"
#include "nibble/train.h"

namespace nibble::train {

/// Trains `adapter` in place and writes output_dir. `base_model` is what adapter_config.json names. Errors: as Trainer.
TrainingReport train_adapter(const models::Decoder& base, adapters::Adapter& adapter, const std::string& base_model,
                             const TrainingArguments& arguments, const Dataset& train, const Dataset* evaluation,
                             const std::function<void(const TrainingProgress&)>& on_progress,
                             const std::function<void(const TrainingProgress&)>& on_step = {});

/// The checkpoint that resume_from_checkpoint names: itself, or the newest in it. Errors: not_found.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);

}  // namespace nibble::train
