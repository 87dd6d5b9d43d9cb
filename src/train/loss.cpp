// The gradient in x is made beside the loss, while a chunk's logits are there.
#include "train/loss.h"

#include <algorithm>
#include <array>
#include <vector>

#include "nn/lora.h"

namespace nibble::train {
namespace {

/// Logits of a chunk: at most this many floats.
constexpr int64_t kChunkFloats = int64_t{4} << 20;

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
  const int64_t chunk = std::max<int64_t>(1, kChunkFloats / vocab);
  Tensor picked(DType::f32, {std::max<int64_t>(1, std::min(chunk, count)), width});
  Tensor logits(DType::f32, {picked.dim(0), vocab});
  Tensor dx;
  if (is_training) dx = Tensor(DType::f32, {std::max<int64_t>(1, count), width});
  std::vector<float> losses(static_cast<size_t>(count));
  const kernels::Kernels& kernels = backend.kernels();
  for (int64_t first = 0; first < count; first += chunk) {
    const int64_t m = std::min(chunk, count - first);
    kernels.embed(backend.context(),
                  {x->value.data(), DType::f32, rows.data() + first, m, width, 1, picked.as<float>()});
    const std::array calls{nn::LinearCall{&head, logits.as<float>(), vocab}};
    nn::run_linear(backend, picked.as<float>(), m, calls, false);
    kernels.cross_entropy(backend.context(),
                          {logits.as<float>(), wanted.data() + first, m, vocab, scale, losses.data() + first});
    if (!is_training) continue;
    kernels::Absmax absmax;
    kernels.input_gradient(backend.context(), {logits.as<float>(), vocab, m, vocab, width, nn::view_of(head, absmax),
                                               dx.as<float>() + first * width, false});
  }
  if (is_training)
    tape.record([&backend, x, rows = std::move(rows), dx, count, width] {
      const auto target = autograd::gradient_of(*x);
      if (!target.accumulate) std::fill_n(target.data, x->value.count(), 0.0f);
      const std::vector<float> ones(static_cast<size_t>(count), 1.0f);
      backend.kernels().scatter_add_rows(backend.context(),
                                         {dx.as<float>(), rows.data(), ones.data(), count, width, target.data});
    });
  double sum = 0;
  for (const float loss : losses) sum += static_cast<double>(loss);
  return sum;
}

}  // namespace nibble::train
