// Which device "auto" means: a GPU with room for the model, else the CPU.
#pragma once

#include <functional>
#include <string>

#include "api/model_source.h"
#include "device/cuda.h"

namespace nibble::api {

struct Placement {
  std::string device;  // "cpu" or "cuda:N"
  std::string reason;
  bool is_refused = false;  // there are GPUs, but none has room
};

/// The first GPU that nibble runs on with `needed_bytes` free, unless `max_memory` (0: none) is less. `free_bytes` asks
/// one GPU, and only as far as needed: that starts a context on it.
Placement choose_device(const device::CudaSupport& support, int64_t needed_bytes,
                        const std::function<int64_t(int index)>& free_bytes, int64_t max_memory = 0);

/// What a model takes on a GPU: weights, activations, and the cache of one sequence of up to 4096 tokens.
int64_t needed_device_bytes(const ModelSource& source, const LoadOptions& options);

/// `options` with a device in the place of "auto", without a limit on a GPU's memory if that is the CPU; tells
/// options.notice why, and options.warning if GPUs are too full.
LoadOptions with_device(const ModelSource& source, const LoadOptions& options);

}  // namespace nibble::api
