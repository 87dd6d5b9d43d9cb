// What a checkpoint must agree on to be gone on from: options, data, adapter and base model.
#pragma once

#include <string>
#include <string_view>

#include "adapters/lora.h"
#include "base/json.h"
#include "models/decoder.h"
#include "nibble/train.h"

namespace nibble::train {

/// A number that other data hardly shares.
std::string hash_of(const Dataset& dataset);

/// One value a key. The data and the base's weights are numbers that other ones hardly share.
Json run_identity(const TrainingArguments& arguments, const Dataset& train, const models::Decoder& base,
                  const adapters::Adapter& adapter);

/// `state` is a checkpoint's, with its identity under "run"; keys that an older one lacks are passed by. Errors:
/// corrupt_file; invalid_argument naming the first key that differs, and both values.
void require_same_run(const Json& state, const Json& mine, std::string_view source);

}  // namespace nibble::train
