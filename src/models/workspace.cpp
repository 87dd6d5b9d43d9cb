// Buffers that grow and stay.
#include "models/workspace.h"

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace nibble::models {

float* Workspace::get(size_t slot, int64_t count) {
  if (slot >= buffers_.size()) buffers_.resize(slot + 1);
  Tensor& buffer = buffers_[slot];
  if (!buffer || buffer.count() < count) {
    buffer = {};  // its memory may serve the new one
    ++moves_;     // even if there is none
    buffer = backend_.empty(DType::f32, {count});
  }
  return buffer.as<float>();
}

RelativeBiasTable Workspace::get_bias(size_t index, const nn::RelativeBias& bias, int64_t span) {
  if (index >= biases_.size()) biases_.resize(index + 1);
  Bias& table = biases_[index];
  if (table.span < span) {
    constexpr int64_t kLeast = 128;  // a step a token must not make a table each
    const auto wider = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(span, kLeast))));
    Tensor values(DType::f32, {bias.heads(), 2 * wider - 1});
    bias.fill(wider, values.as<float>());
    table = {backend_.to_device(values), wider};
    ++moves_;
  }
  return {table.values.as<float>(), table.span};
}

void Workspace::begin_inputs(int64_t size_bytes) {
  used_ = 0;
  if (device_ && device_.count() >= size_bytes) return;
  const int64_t room = std::max<int64_t>(2 * size_bytes, 4096);
  ++moves_;
  if (device::CudaStream* cuda = backend_.cuda()) {
    cuda->synchronize();  // a copy from the old memory may be under way
    host_ = cuda->allocate_pinned(room);
    device_ = backend_.empty(DType::u8, {room});
  } else {
    device_ = Tensor(DType::u8, {room});
    host_ = std::shared_ptr<void>(device_.data(), [](void*) {});
  }
}

int64_t Workspace::add_bytes(int64_t size_bytes) {
  const int64_t at = used_;
  used_ += input_bytes(size_bytes, 1);
  if (used_ > device_.count())
    fail(ErrorCode::internal, "inputs of a pass: {} bytes, expected {}", used_, device_.count());
  return at;
}

void Workspace::send_inputs(bool is_recorded) {
  device::CudaStream* cuda = backend_.cuda();
  if (!cuda) return;
  if (is_recorded)
    cuda->copy(device_.data(), host_.get(), used_);
  else
    cuda->upload(device_.data(), host_.get(), used_);  // through the ring: the host may write the next pass at once
}

}  // namespace nibble::models
