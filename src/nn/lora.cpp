// One op: what it keeps is x and the rank-r product; dropout is drawn anew on the way back.
#include "nn/lora.h"

#include <array>

#include "base/error.h"

namespace nibble::nn {
namespace {

using autograd::gradient_of;
using autograd::Tape;
using autograd::Var;

/// out (m, rows) = or += x w^T, all f32.
void multiply(const ops::Backend& backend, const float* x, int64_t m, const Tensor& w, float* out, bool accumulate) {
  const int64_t rows = w.dim(0), cols = w.dim(1);
  const kernels::MatmulDenseJob job{w.data(), DType::f32, rows, {out, rows, nullptr, accumulate}};
  backend.kernels().matmul_dense(backend.context(), {x, m, cols, DType::f32}, &job, 1);
}

void scale_in_place(const ops::Backend& backend, Tensor& x, float scale) {
  backend.kernels().add_scaled(backend.context_for(x.count()), {x.as<float>(), x.count(), scale - 1, x.as<float>()});
}

/// x after dropout, or x itself.
Tensor dropped(const ops::Backend& backend, const Tensor& x, float p, uint64_t seed) {
  if (p == 0) return x;
  Tensor out(DType::f32, x.shape());
  backend.kernels().dropout(backend.context_for(x.count()), {x.as<float>(), x.count(), p, seed, 0, out.as<float>()});
  return out;
}

/// Gradients of the low-rank part; `low` is scale * A dropout(x).
void lora_backward(const ops::Backend& backend, const Var& x, const Lora& lora, const Tensor& low, const Tensor& dy,
                   uint64_t seed) {
  const int64_t rank = lora.a->value.dim(0), cols = lora.a->value.dim(1), rows = lora.b->value.dim(0);
  const int64_t m = dy.count() / rows;
  const auto* g = dy.as<float>();
  if (lora.b->requires_grad) {
    const auto db = gradient_of(*lora.b);
    backend.kernels().weight_gradient(backend.context(), {g, low.as<float>(), m, rows, rank, db.data, db.accumulate});
  }
  Tensor dlow(DType::f32, {m, rank});
  backend.kernels().input_gradient(backend.context(),
                                   {g,
                                    rows,
                                    m,
                                    rows,
                                    rank,
                                    {kernels::WeightView::Kind::dense, lora.b->value.data(), DType::f32},
                                    dlow.as<float>(),
                                    false});
  scale_in_place(backend, dlow, lora.scale);
  if (lora.a->requires_grad) {
    const Tensor input = dropped(backend, x->value, lora.dropout, seed);
    const auto da = gradient_of(*lora.a);
    backend.kernels().weight_gradient(backend.context(),
                                      {dlow.as<float>(), input.as<float>(), m, rank, cols, da.data, da.accumulate});
  }
  if (!x->requires_grad) return;
  const auto dx = gradient_of(*x);
  const kernels::WeightView a{kernels::WeightView::Kind::dense, lora.a->value.data(), DType::f32};
  if (lora.dropout == 0) {
    backend.kernels().input_gradient(backend.context(),
                                     {dlow.as<float>(), rank, m, rank, cols, a, dx.data, dx.accumulate});
    return;
  }
  Tensor part(DType::f32, x->value.shape());
  auto* p = part.as<float>();
  backend.kernels().input_gradient(backend.context(), {dlow.as<float>(), rank, m, rank, cols, a, p, false});
  backend.kernels().dropout(backend.context_for(part.count()), {p, part.count(), lora.dropout, seed, 0, p});
  if (dx.accumulate)
    backend.kernels().add_scaled(backend.context_for(part.count()), {p, part.count(), 1, dx.data});
  else
    x->grad = std::move(part);
}

}  // namespace

kernels::WeightView view_of(const Linear& layer, kernels::Absmax& absmax) {
  using Kind = kernels::WeightView::Kind;
  if (const auto* dense = std::get_if<DenseWeight>(&layer.weight))
    return {Kind::dense, dense->weight.data(), dense->weight.dtype()};
  if (const auto* packed = std::get_if<Weight4Bit>(&layer.weight)) {
    absmax = packed->weight.absmax_view();
    return {.kind = Kind::four_bit,
            .data = packed->weight.packed.data(),
            .absmax = &absmax,
            .block = packed->weight.block,
            .code_book = packed->weight.format->code_book_4bit->values.data()};
  }
  const auto& rows = std::get<WeightInt8>(layer.weight).weight;
  return {.kind = Kind::int8, .data = rows.values.data(), .row_absmax = rows.absmax.as<float>()};
}

Var linear(Tape& tape, const ops::Backend& backend, const Var& x, const Linear& layer, const Lora* lora,
           uint64_t seed) {
  const int64_t m = x->value.count() / layer.cols;
  require(x->value.count() == m * layer.cols, "linear: found {} values, expected rows of {}", x->value.count(),
          layer.cols);
  Var y = result_of(tape, Tensor(DType::f32, {m, layer.rows}),
                    {x.get(), lora ? lora->a.get() : nullptr, lora ? lora->b.get() : nullptr});
  const std::array calls{LinearCall{&layer, y->value.as<float>(), layer.rows}};
  run_linear(backend, x->value.as<float>(), m, calls, false);
  Tensor low;
  if (lora) {
    low = Tensor(DType::f32, {m, lora->a->value.dim(0)});
    const Tensor input = dropped(backend, x->value, lora->dropout, seed);
    multiply(backend, input.as<float>(), m, lora->a->value, low.as<float>(), false);
    scale_in_place(backend, low, lora->scale);
    multiply(backend, low.as<float>(), m, lora->b->value, y->value.as<float>(), true);
  }
  if (y->requires_grad)
    tape.record([&backend, x, y, &layer, lora, low, m, seed] {
      if (x->requires_grad) {
        const auto dx = gradient_of(*x);
        kernels::Absmax absmax;
        backend.kernels().input_gradient(backend.context(), {y->grad.as<float>(), layer.rows, m, layer.rows, layer.cols,
                                                             view_of(layer, absmax), dx.data, dx.accumulate});
      }
      if (lora) lora_backward(backend, x, *lora, low, y->grad, seed);
      y->grad = {};
    });
  return y;
}

}  // namespace nibble::nn
