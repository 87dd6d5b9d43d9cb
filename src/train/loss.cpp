// The gradient in x is made beside the loss, while a chunk's logits are there.
#include "train/loss.h"

#include <algorithm>
#include <array>
#include <vector>

#include "nn/lora.h"
#include "ops/gradient.h"

namespace nibble::train {
namespace {

/// Logits of a chunk: at most this many; a GPU wants more rows in a product.
constexpr int64_t kChunkLogits = int64_t{4} << 20, kGpuChunkLogits = int64_t{32} << 20;

/// From row `first` of a matrix on, whatever its type.
float* part_of(Tensor& rows, int64_t first) {
  return reinterpret_cast<float*>(rows.as<std::byte>() + first * rows.dim(1) * size_of(rows.dtype()));
}

template <typename T>
Tensor uploaded(const ops::Backend& backend, DType dtype, const std::vector<T>& values) {
  Tensor tensor = backend.empty(dtype, {static_cast<int64_t>(values.size())});
  backend.upload(tensor.data(), values.data(), tensor.size_bytes());
  return tensor;
}

}  // namespace

double head_loss(autograd::Tape& tape, const ops::Backend& backend, const autograd::Var& x, const nn::Linear& head,
                 std::span<const int32_t> targets, float scale) {
  std::vector<int32_t> rows, wanted;
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] < 0) continue;
    rows.push_back(static_cast<int32_t>(i));
    wanted.push_back(targets[i]);
  }
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t width = head.cols, vocab = head.rows;
  const bool is_training = tape.is_recording() && x->requires_grad;
  const int64_t chunk = std::max<int64_t>(1, (backend.cuda() ? kGpuChunkLogits : kChunkLogits) / vocab);
  const DType dtype = x->value.dtype();
  Tensor picked = backend.empty(dtype, {std::max<int64_t>(1, std::min(chunk, count)), width});
  Tensor logits = backend.empty(dtype, {picked.dim(0), vocab});
  Tensor dx;
  if (is_training) dx = backend.empty(dtype, {std::max<int64_t>(1, count), width});
  const Tensor device_rows = uploaded(backend, DType::i32, rows), device_wanted = uploaded(backend, DType::i32, wanted);
  const Tensor ones = uploaded(backend, DType::f32, std::vector<float>(static_cast<size_t>(count), 1.0f));
  Tensor device_losses = backend.empty(DType::f32, {count});
  const kernels::Kernels& kernels = backend.kernels();
  for (int64_t first = 0; first < count; first += chunk) {
    const int64_t m = std::min(chunk, count - first);
    kernels.embed(backend.context(), {x->value.data(), dtype, device_rows.as<int32_t>() + first, m, width, 1,
                                      picked.data(), false, dtype});
    const std::array calls{nn::LinearCall{&head, {logits.data(), dtype}, vocab}};
    nn::run_linear(backend, {picked.data(), dtype}, m, calls, false);
    kernels.cross_entropy(backend.context(), {logits.as<float>(), device_wanted.as<int32_t>() + first, m, vocab, scale,
                                              device_losses.as<float>() + first, dtype});
    if (!is_training) continue;
    kernels::Absmax absmax;
    kernels.input_gradient(backend.context(), {logits.as<float>(), vocab, m, vocab, width, nn::view_of(head, absmax),
                                               part_of(dx, first), false, dtype});
  }
  if (is_training)
    tape.record([&backend, x, rows = device_rows, ones, dx, count, width] {
      backend.kernels().scatter_add_rows(backend.context(),
                                         {dx.as<float>(), rows.as<int32_t>(), ones.as<float>(), count, width,
                                          ops::gradient_sum_of(backend, x), dx.dtype()});
    });
  std::vector<float> losses(static_cast<size_t>(count));
  backend.download(losses.data(), device_losses.data(), device_losses.size_bytes());
  double sum = 0;
  for (const float loss : losses) sum += static_cast<double>(loss);
  return sum;
}

}  // namespace nibble::train
