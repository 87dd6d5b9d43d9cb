// The gradient in x is made beside the loss, while a chunk's logits are there.
#include "train/loss.h"

#include <algorithm>
#include <array>
#include <numeric>
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

/// cap * tanh(logits / cap) in memory of its own, and its gradient; without a cap the logits themselves.
class Capped {
 public:
  Capped(const ops::Backend& backend, Tensor& logits, int64_t count, float cap)
      : backend_(backend), inner_(logits.as<float>()), count_(count), dtype_(logits.dtype()), outer_(inner_) {
    if (cap <= 0) return;
    scale(inner_, 1 / cap);
    turned_ = backend.empty(dtype_, {count});
    outer_ = turned_.as<float>();
    backend.kernels().activate(backend.context(),
                               {inner_, nullptr, count, 1, count, kernels::Activation::tanh_, outer_, dtype_, dtype_});
    scale(outer_, cap);
  }
  /// Where the loss reads, and writes its gradient.
  float* logits() const { return outer_; }
  /// The gradient in the logits before the cap, in their place: the cap and its inverse cancel.
  void backward() const {
    if (outer_ == inner_) return;
    backend_.kernels().activate_gradient(backend_.context(), {inner_, nullptr, count_, outer_, 1, count_,
                                                              kernels::Activation::tanh_, inner_, nullptr, dtype_});
  }

 private:
  void scale(float* x, float factor) const {
    backend_.kernels().add_scaled(backend_.context(), {x, count_, factor - 1, x, dtype_});
  }

  const ops::Backend& backend_;
  float* inner_;
  int64_t count_;
  DType dtype_;
  Tensor turned_;
  float* outer_;
};

/// Logits that a cap bends stay in fp32 until their gradient is there.
struct Rounding {
  const ops::Backend& backend;
  DType from, to;
  int64_t cols;
  Tensor numbers = {}, rounded = {};

  Rounding(const ops::Backend& on, int64_t rows, int64_t width, DType logits, DType activations)
      : backend(on), from(logits), to(activations), cols(width) {
    if (from == to) return;
    std::vector<int32_t> all(static_cast<size_t>(rows));
    std::iota(all.begin(), all.end(), 0);
    numbers = uploaded(backend, DType::i32, all);
    rounded = backend.empty(to, {rows, cols});
  }
  /// The first rows in the activations' type.
  Tensor round(const Tensor& x, int64_t rows) const {
    if (from == to) return x;
    Tensor out = rounded;
    backend.kernels().embed(backend.context(),
                            {x.data(), from, numbers.as<int32_t>(), rows, cols, 1, out.data(), false, to});
    return out;
  }
};

}  // namespace

double head_loss(autograd::Tape& tape, const ops::Backend& backend, const autograd::Var& x, const Head& head,
                 std::span<const int32_t> targets, float scale) {
  std::vector<int32_t> rows, wanted;
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] < 0) continue;
    rows.push_back(static_cast<int32_t>(i));
    wanted.push_back(targets[i]);
  }
  const auto count = static_cast<int64_t>(rows.size());
  const nn::Linear& layer = head.layer;
  const int64_t width = layer.cols, vocab = layer.rows;
  const bool is_training = tape.is_recording() && x->requires_grad;
  const int64_t chunk = std::max<int64_t>(1, (backend.cuda() ? kGpuChunkLogits : kChunkLogits) / vocab);
  const DType dtype = x->value.dtype();
  Tensor picked = backend.empty(dtype, {std::max<int64_t>(1, std::min(chunk, count)), width});
  const Rounding rounding(backend, picked.dim(0), vocab, head.softcap > 0 ? DType::f32 : dtype, dtype);
  Tensor logits = backend.empty(rounding.from, {picked.dim(0), vocab});
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
    const std::array calls{nn::LinearCall{&layer, {logits.data(), logits.dtype()}, vocab}};
    nn::run_linear(backend, {picked.data(), dtype}, m, calls, false);
    const Capped capped(backend, logits, m * vocab, head.softcap);
    kernels.cross_entropy(backend.context(), {capped.logits(), device_wanted.as<int32_t>() + first, m, vocab, scale,
                                              device_losses.as<float>() + first, logits.dtype()});
    if (!is_training) continue;
    capped.backward();
    const Tensor slopes = rounding.round(logits, m);
    if (head.weight) {
      const auto dw = ops::gradient_of(backend, *head.weight);
      kernels.weight_gradient(backend.context(),
                              {slopes.as<float>(), picked.as<float>(), m, vocab, width, dw.data, dw.accumulate, dtype});
    }
    if (head.bias)
      kernels.sum_columns(backend.context(),
                          {slopes.as<float>(), nullptr, m, vocab, ops::gradient_sum_of(backend, head.bias), dtype});
    kernels::Absmax absmax;
    kernels.input_gradient(backend.context(), {slopes.as<float>(), vocab, m, vocab, width, nn::view_of(layer, absmax),
                                               part_of(dx, first), false, dtype, nn::gradient_compute_of(layer)});
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
