// A linear layer over a dense, 4-bit or LLM.int8() weight; several that share an input run as one kernel call.
#pragma once

#include <span>
#include <variant>

#include "nn/norm.h"
#include "nn/values.h"
#include "ops/backend.h"
#include "ops/quantize.h"
#include "tensor/tensor.h"

namespace nibble::nn {

/// (rows, cols) of f32, bf16 or f16.
struct DenseWeight {
  Tensor weight;
};
struct Weight4Bit {
  ops::Tensor4Bit weight;
  DType compute = DType::f32;  // bnb_4bit_compute_dtype
};
struct WeightInt8 {
  ops::TensorInt8 weight;
  float threshold = 6;  // llm_int8_threshold
};
using Weight = std::variant<DenseWeight, Weight4Bit, WeightInt8>;

/// A weight where the kernels of `backend` reach it, or in main memory.
Weight to_device(const ops::Backend& backend, const Weight& weight);
Weight to_host(const ops::Backend& backend, const Weight& weight);

/// An adapter's update of a linear layer: y += (x a^T) b^T.
struct LowRank {
  Tensor a;               // f32 (r, cols)
  Tensor b;               // f32 (rows, r), with the adapter's scale
  Tensor row_scale = {};  // f32 (rows), or empty: factors of the weight's rows (DoRA)
  /// On a GPU: room between two products of up to kRoomRows rows: a recorded step allocates nothing. Updates share it.
  Tensor room = {};
  static constexpr int64_t kRoomRows = 1024;
};

/// y = x w^T + bias, and the update if there is one.
struct Linear {
  Weight weight;
  Tensor bias;  // f32 (rows), or empty
  int64_t rows = 0;
  int64_t cols = 0;
  const LowRank* update = nullptr;
};

/// Where one layer's result goes: y[i * y_stride + n], added to what is there if `accumulate`.
struct LinearCall {
  const Linear* layer;
  Values y;
  int64_t y_stride;
  bool accumulate = false;
};

/// Runs `calls` on the same `x` (m, cols); neighbours of the same kind share one kernel call.
void run_linear(const ops::Backend& backend, ConstValues x, int64_t m, std::span<const LinearCall> calls,
                bool batch_invariant);

/// Two calls, gate and up, whose results become `out` (m, rows) = activation(gate) * up; their own y is not written.
struct Gate {
  kernels::Activation activation;
  Values out;
};

/// run_linear on the norm of `x`, or with `gate` at its end, or both, in one kernel call; each may be null. False, and
/// nothing done, where there is no such kernel.
bool run_fused_linear(const ops::Backend& backend, const Norm* norm, ConstValues x, int64_t m,
                      std::span<const LinearCall> calls, const Gate* gate, bool batch_invariant);

}  // namespace nibble::nn
