// One op: what it keeps is x and the rank-r product; dropout is drawn anew on the way back.
#include "nn/lora.h"

#include <array>

#include "base/error.h"
#include "ops/gradient.h"

namespace nibble::nn {
namespace {

using autograd::Tape;
using autograd::Var;
using ops::empty_like;
using ops::gradient_of;

/// out (m, rows) = or += x w^T; w is f32, x and out of one type.
void multiply(const ops::Backend& backend, const Tensor& x, int64_t m, const Tensor& w, Tensor& out, bool accumulate) {
  const int64_t rows = w.dim(0), cols = w.dim(1);
  const kernels::MatmulDenseJob job{w.data(), DType::f32, rows, {out.data(), rows, nullptr, accumulate, out.dtype()}};
  backend.kernels().matmul_dense(backend.context(), {x.data(), m, cols, DType::f32, false, x.dtype()}, &job, 1);
}

void scale_in_place(const ops::Backend& backend, Tensor& x, float scale) {
  backend.kernels().add_scaled(backend.context_for(x.count()),
                               {x.as<float>(), x.count(), scale - 1, x.as<float>(), x.dtype()});
}

/// x after dropout, or x itself.
Tensor dropped(const ops::Backend& backend, const Tensor& x, float p, uint64_t seed) {
  if (p == 0) return x;
  Tensor out = empty_like(backend, x);
  backend.kernels().dropout(backend.context_for(x.count()),
                            {x.as<float>(), x.count(), p, seed, 0, out.as<float>(), x.dtype()});
  return out;
}

/// True if the backend has entries that do all of it in one.
bool is_fused(const ops::Backend& backend, const Tensor& x, const Lora& lora) {
  if (!backend.kernels().low_rank_update || lora.a->value.dim(0) > kernels::kMaxLowRank) return false;
  if (!backend.cuda()) return x.dtype() == DType::f32;
  return backend.context().capability >= 80 && x.dtype() == DType::bf16 && lora.a->value.dim(1) % 8 == 0 &&
         lora.b->value.dim(0) % 8 == 0;
}

/// Adds the update to y, unless it is null; gives what the way back needs beside x: the low-rank part, scale * A
/// dropout(x).
Tensor add_update(const ops::Backend& backend, const Tensor& x, const Lora& lora, uint64_t seed, Tensor* y) {
  const int64_t rank = lora.a->value.dim(0), cols = lora.a->value.dim(1), rows = lora.b->value.dim(0);
  const int64_t m = x.count() / cols;
  if (is_fused(backend, x, lora)) {
    Tensor low = backend.empty(x.dtype(), {kernels::padded_rank(rank), (m + 7) / 8 * 8});
    backend.kernels().low_rank_update(
        backend.context(), {x.data(), m, cols, rows, rank, lora.a->value.as<float>(), lora.b->value.as<float>(),
                            lora.scale, lora.dropout, seed, low.data(), y ? y->data() : nullptr, x.dtype()});
    return low;
  }
  Tensor low = backend.empty(x.dtype(), {m, rank});
  multiply(backend, dropped(backend, x, lora.dropout, seed), m, lora.a->value, low, false);
  scale_in_place(backend, low, lora.scale);
  if (y) multiply(backend, low, m, lora.b->value, *y, true);
  return low;
}

void fused_backward(const ops::Backend& backend, const Var& x, const Lora& lora, const Tensor& low, const Tensor& dy,
                    uint64_t seed) {
  const int64_t rank = lora.a->value.dim(0), cols = lora.a->value.dim(1), rows = lora.b->value.dim(0);
  kernels::LowRankGradientArgs args{};
  args.x = x->value.data();
  args.m = dy.count() / rows;
  args.cols = cols;
  args.rows = rows;
  args.rank = rank;
  args.a = lora.a->value.as<float>();
  args.b = lora.b->value.as<float>();
  args.scale = lora.scale;
  args.p = lora.dropout;
  args.seed = seed;
  args.low_transposed = low.data();
  args.dy = dy.data();
  if (lora.a->requires_grad) {
    const auto da = gradient_of(backend, *lora.a);
    args.da = da.data;
    args.accumulate_a = da.accumulate;
  }
  if (lora.b->requires_grad) {
    const auto db = gradient_of(backend, *lora.b);
    args.db = db.data;
    args.accumulate_b = db.accumulate;
  }
  if (x->requires_grad) args.dx = x->grad.data();  // the frozen weight's share is there
  args.dtype = dy.dtype();
  backend.kernels().low_rank_gradient(backend.context(), args);
}

/// Gradients of the low-rank part; `low` is what add_update gave.
void lora_backward(const ops::Backend& backend, const Var& x, const Lora& lora, const Tensor& low, const Tensor& dy,
                   uint64_t seed) {
  if (is_fused(backend, x->value, lora)) return fused_backward(backend, x, lora, low, dy, seed);
  using Kind = kernels::WeightView::Kind;
  const int64_t rank = lora.a->value.dim(0), cols = lora.a->value.dim(1), rows = lora.b->value.dim(0);
  const int64_t m = dy.count() / rows;
  const DType dtype = dy.dtype();
  const kernels::Kernels& kernels = backend.kernels();
  if (lora.b->requires_grad) {
    const auto db = gradient_of(backend, *lora.b);
    kernels.weight_gradient(backend.context(),
                            {dy.as<float>(), low.as<float>(), m, rows, rank, db.data, db.accumulate, dtype});
  }
  Tensor dlow = backend.empty(dtype, {m, rank});
  const kernels::WeightView b{Kind::dense, lora.b->value.data(), DType::f32};
  kernels.input_gradient(backend.context(), {dy.as<float>(), rows, m, rows, rank, b, dlow.as<float>(), false, dtype});
  scale_in_place(backend, dlow, lora.scale);
  if (lora.a->requires_grad) {
    const Tensor input = dropped(backend, x->value, lora.dropout, seed);
    const auto da = gradient_of(backend, *lora.a);
    kernels.weight_gradient(backend.context(),
                            {dlow.as<float>(), input.as<float>(), m, rank, cols, da.data, da.accumulate, dtype});
  }
  if (!x->requires_grad) return;
  const auto dx = gradient_of(backend, *x);
  const kernels::WeightView a{Kind::dense, lora.a->value.data(), DType::f32};
  if (lora.dropout == 0) {
    kernels.input_gradient(backend.context(),
                           {dlow.as<float>(), rank, m, rank, cols, a, dx.data, dx.accumulate, dtype});
    return;
  }
  Tensor part = empty_like(backend, x->value);
  auto* p = part.as<float>();
  kernels.input_gradient(backend.context(), {dlow.as<float>(), rank, m, rank, cols, a, p, false, dtype});
  kernels.dropout(backend.context_for(part.count()), {p, part.count(), lora.dropout, seed, 0, p, dtype});
  kernels.add_scaled(backend.context_for(part.count()), {p, part.count(), 1, dx.data, dtype});
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

DType gradient_compute_of(const Linear& layer) {
  DType compute = DType::f32;
  if (const auto* dense = std::get_if<DenseWeight>(&layer.weight)) compute = dense->weight.dtype();
  if (const auto* packed = std::get_if<Weight4Bit>(&layer.weight)) compute = packed->compute;
  return compute == DType::bf16 ? DType::bf16 : DType::f32;
}

Var linear(Tape& tape, const ops::Backend& backend, const Var& x, const Linear& layer, const Lora* lora, uint64_t seed,
           bool needs_value) {
  const int64_t m = x->value.count() / layer.cols;
  require(x->value.count() == m * layer.cols, "linear: found {} values, expected rows of {}", x->value.count(),
          layer.cols);
  const DType dtype = x->value.dtype();
  Var y = result_of(tape, needs_value ? backend.empty(dtype, {m, layer.rows}) : Tensor(),
                    {x.get(), lora ? lora->a.get() : nullptr, lora ? lora->b.get() : nullptr});
  if (needs_value) {
    const std::array calls{LinearCall{&layer, {y->value.data(), dtype}, layer.rows}};
    run_linear(backend, {x->value.data(), dtype}, m, calls, false);
  }
  Tensor low;
  if (lora) low = add_update(backend, x->value, *lora, seed, needs_value ? &y->value : nullptr);
  if (y->requires_grad)
    tape.record([&backend, x, y, &layer, lora, low, m, seed] {
      if (x->requires_grad) {
        const auto dx = gradient_of(backend, *x);
        kernels::Absmax absmax;
        backend.kernels().input_gradient(
            backend.context(), {y->grad.as<float>(), layer.rows, m, layer.rows, layer.cols, view_of(layer, absmax),
                                dx.data, dx.accumulate, y->grad.dtype(), gradient_compute_of(layer)});
      }
      if (lora) lora_backward(backend, x, *lora, low, y->grad, seed);
      y->grad = {};
    });
  return y;
}

}  // namespace nibble::nn
