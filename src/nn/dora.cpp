// A composition: the low-rank op on the bare layer, then one that scales columns.
#include "nn/dora.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"

namespace nibble::nn {
namespace {

using autograd::Tape;
using autograd::Var;

Tensor copy_of(const ops::Backend& backend, const Tensor& x) {
  Tensor copy = ops::empty_like(backend, x);
  backend.copy_rows(copy.data(), x.size_bytes(), x.data(), x.size_bytes(), x.size_bytes(), 1);
  return copy;
}

/// a - b.
Var difference(Tape& tape, const ops::Backend& backend, const Var& a, const Var& b) {
  const int64_t count = a->value.count();
  Tensor value = copy_of(backend, a->value);
  backend.kernels().add_scaled(backend.context_for(count),
                               {b->value.as<float>(), count, -1, value.as<float>(), value.dtype()});
  Var y = result_of(tape, std::move(value), {a.get(), b.get()});
  if (y->requires_grad)
    tape.record([&backend, a, b, y, count] {
      Tensor negative = ops::empty_like(backend, y->grad);
      backend.fill_zero(negative.data(), negative.size_bytes());
      backend.kernels().add_scaled(backend.context_for(count),
                                   {y->grad.as<float>(), count, -1, negative.as<float>(), negative.dtype()});
      add_gradient(backend, b, std::move(negative));
      add_gradient(backend, a, std::move(y->grad));
      y->grad = {};
    });
  return y;
}

/// u * (magnitude * inverse) + bias, by columns.
Var scaled(Tape& tape, const ops::Backend& backend, const Var& u, const Var& magnitude, const Tensor& inverse,
           const Tensor& bias) {
  const int64_t cols = inverse.count(), rows = u->value.count() / cols;
  const kernels::Kernels& kernels = backend.kernels();
  Tensor factor = ops::empty_like(backend, inverse);
  kernels.scale_columns(backend.context_for(cols), {magnitude->value.as<float>(), inverse.as<float>(), nullptr, 1, cols,
                                                    factor.as<float>(), cols, false});
  Var y = result_of(tape, ops::empty_like(backend, u->value), {u.get(), magnitude.get()});
  kernels.scale_columns(backend.context_for(rows * cols),
                        {u->value.as<float>(), factor.as<float>(), bias ? bias.as<float>() : nullptr, rows, cols,
                         y->value.as<float>(), cols, false, u->value.dtype(), y->value.dtype()});
  if (y->requires_grad)
    tape.record([&backend, u, magnitude, inverse, factor, y, rows, cols] {
      const kernels::Kernels& k = backend.kernels();
      const kernels::Context& context = backend.context_for(rows * cols);
      if (float* target = gradient_sum_of(backend, magnitude)) {
        Tensor sums = ops::empty_like(backend, inverse);
        backend.fill_zero(sums.data(), sums.size_bytes());
        k.sum_columns(context,
                      {y->grad.as<float>(), u->value.as<float>(), rows, cols, sums.as<float>(), u->value.dtype()});
        k.scale_columns(backend.context_for(cols),
                        {sums.as<float>(), inverse.as<float>(), nullptr, 1, cols, target, cols, true});
      }
      Tensor du = ops::empty_like(backend, y->grad);
      k.scale_columns(context, {y->grad.as<float>(), factor.as<float>(), nullptr, rows, cols, du.as<float>(), cols,
                                false, du.dtype(), du.dtype()});
      add_gradient(backend, u, std::move(du));
      y->grad = {};
    });
  return y;
}

}  // namespace

Tensor plain_weight(const ops::Backend& backend, const Linear& layer) {
  if (const auto* packed = std::get_if<Weight4Bit>(&layer.weight))
    return ops::dequantize_4bit(backend, packed->weight, DType::f32).reshaped({layer.rows, layer.cols});
  if (const auto* rows = std::get_if<WeightInt8>(&layer.weight))
    return ops::dequantize_int8(backend, rows->weight, DType::f32);
  const Tensor& dense = std::get<DenseWeight>(layer.weight).weight;
  std::vector<int32_t> ids(static_cast<size_t>(layer.rows));
  std::iota(ids.begin(), ids.end(), 0);
  Tensor numbers = backend.empty(DType::i32, {layer.rows}), plain = backend.empty(DType::f32, {layer.rows, layer.cols});
  backend.upload(numbers.data(), ids.data(), numbers.size_bytes());
  backend.kernels().embed(backend.context(), {dense.data(), dense.dtype(), numbers.as<int32_t>(), layer.rows,
                                              layer.cols, 1, plain.as<float>()});
  return plain;
}

Tensor inverse_row_norms(const ops::Backend& backend, const Linear& layer, const Lora& lora) {
  Tensor weight = plain_weight(backend, layer), b = copy_of(backend, lora.b->value);
  const int64_t rank = lora.a->value.dim(0);
  backend.kernels().add_scaled(backend.context_for(b.count()),
                               {lora.b->value.as<float>(), b.count(), lora.scale - 1, b.as<float>()});
  backend.kernels().input_gradient(backend.context(),
                                   {b.as<float>(),
                                    rank,
                                    layer.rows,
                                    rank,
                                    layer.cols,
                                    {kernels::WeightView::Kind::dense, lora.a->value.data(), DType::f32},
                                    weight.as<float>(),
                                    true});
  const int64_t chunks = (layer.cols + kernels::kOptimizerChunk - 1) / kernels::kOptimizerChunk;
  std::vector<kernels::SumSquaresJob> jobs;
  for (int64_t r = 0; r < layer.rows; ++r)
    jobs.push_back({weight.as<float>() + r * layer.cols, DType::f32, layer.cols, r * chunks});
  Tensor partials = backend.empty(DType::i64, {layer.rows * chunks}), sums = backend.empty(DType::i64, {layer.rows});
  backend.kernels().sum_squares(backend.context(), {jobs.data(), layer.rows, static_cast<double*>(partials.data()),
                                                    static_cast<double*>(sums.data())});
  std::vector<double> squares(static_cast<size_t>(layer.rows));
  backend.download(squares.data(), sums.data(), sums.size_bytes());
  std::vector<float> inverse;
  for (const double square : squares) inverse.push_back(static_cast<float>(1 / std::sqrt(square)));
  Tensor result = backend.empty(DType::f32, {layer.rows});
  backend.upload(result.data(), inverse.data(), result.size_bytes());
  return result;
}

DoraParts dora_parts(const Linear& layer, const Lora& lora) {
  DoraParts parts{layer, lora, {}};
  parts.bare.bias = {};
  parts.undropped.dropout = 0;
  return parts;
}

void refresh(const ops::Backend& backend, DoraParts& parts) {
  parts.inverse = inverse_row_norms(backend, parts.bare, parts.undropped);
}

Var dora_linear(Tape& tape, const ops::Backend& backend, const Var& x, const Linear& layer, const DoraParts& parts,
                float dropout, uint64_t seed) {
  const Lora& lora = parts.undropped;
  const Tensor& inverse = parts.inverse;
  const Var dropped = ops::dropout(tape, backend, x, dropout, seed);
  const Var u = linear(tape, backend, dropped, parts.bare, &lora);
  if (dropout == 0) return scaled(tape, backend, u, lora.magnitude, inverse, layer.bias);
  const Var part = scaled(tape, backend, u, lora.magnitude, inverse, {});
  return ops::add(tape, backend, linear(tape, backend, difference(tape, backend, x, dropped), layer), part);
}

}  // namespace nibble::nn
