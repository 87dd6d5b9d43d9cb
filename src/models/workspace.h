// Memory of forward passes, kept between them: buffers of the device, and the small arrays that the host makes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "nn/relative_bias.h"
#include "ops/backend.h"
#include "tensor/tensor.h"

namespace nibble::models {

/// A table as kernels::AttentionArgs::relative_bias.
struct RelativeBiasTable {
  const float* values = nullptr;
  int64_t span = 0;
};

/// Kept between passes so that a step allocates nothing.
class Workspace {
 public:
  explicit Workspace(const ops::Backend& backend) : backend_(backend) {}

  /// A buffer for kernels: `count` floats of any contents, the same ones until more are asked for.
  float* get(size_t slot, int64_t count);

  /// The table of bias `index` for at least `span`, made again only when it has to grow.
  RelativeBiasTable get_bias(size_t index, const nn::RelativeBias& bias, int64_t span);

  /// An array that the host writes and kernels read.
  template <typename T>
  struct Input {
    T* host;          // to be written before send_inputs
    const T* device;  // the same on the CPU
  };
  /// Forgets the arrays of the last pass; those of this one take at most `size_bytes`.
  void begin_inputs(int64_t size_bytes);
  template <typename T>
  Input<T> add_input(int64_t count) {
    const int64_t at = add_bytes(count * static_cast<int64_t>(sizeof(T)));
    return {reinterpret_cast<T*>(static_cast<std::byte*>(host_.get()) + at),
            reinterpret_cast<const T*>(static_cast<const std::byte*>(device_.data()) + at)};
  }
  /// Bytes that add_input takes for `count` values of `size`.
  static constexpr int64_t input_bytes(int64_t count, int64_t size) { return (count * size + 15) / 16 * 16; }
  /// Puts the copy on the GPU's stream. `is_recorded`: for a graph, whose later runs copy what the host has written
  /// by then.
  void send_inputs(bool is_recorded);

  /// How often memory has moved: a recorded graph is stale when it has.
  int64_t moves() const { return moves_; }

 private:
  int64_t add_bytes(int64_t size_bytes);

  const ops::Backend& backend_;
  struct Bias {
    Tensor values;
    int64_t span = 0;
  };
  std::vector<Tensor> buffers_;
  std::vector<Bias> biases_;
  std::shared_ptr<void> host_;  // pinned, for a GPU
  Tensor device_;               // u8; on the CPU a view of host_
  int64_t used_ = 0;
  int64_t moves_ = 0;
};

}  // namespace nibble::models
