// Collects neighbouring calls of one kind into one kernel call.
#include "nn/linear.h"

#include <array>

#include "base/error.h"

namespace nibble::nn {
namespace {

constexpr size_t kMaxJobs = 8;

struct Input {
  const ops::Backend& backend;
  kernels::MatmulInput matmul;
};

/// Errors: unsupported if the backend lacks the entry.
template <typename Entry>
Entry require_entry(const ops::Backend& backend, Entry entry, const char* name) {
  if (!entry) fail(ErrorCode::unsupported, "{} has no {}", backend.kernels().name, name);
  return entry;
}

kernels::MatmulOutput output_of(const LinearCall& call) {
  return {call.y.data, call.y_stride, call.layer->bias ? call.layer->bias.as<float>() : nullptr, call.accumulate,
          call.y.dtype};
}

kernels::Matmul4BitJob job_of(const Weight4Bit& w, const LinearCall& call) {
  return {w.weight.packed.as<uint8_t>(),
          w.weight.absmax_view(),
          w.weight.block,
          w.weight.format->code_book_4bit->values.data(),
          call.layer->rows,
          output_of(call)};
}

kernels::MatmulInt8Job int8_job_of(const WeightInt8& w, const LinearCall& call) {
  return {w.weight.values.as<int8_t>(), w.weight.absmax.as<float>(), call.layer->rows, output_of(call)};
}

/// What outliers are rounded to: bf16 activations may be larger than fp16 holds.
DType int8_compute(DType activations) { return activations == DType::bf16 ? DType::bf16 : DType::f16; }

bool is_scaled(const Linear& layer) { return layer.update && layer.update->row_scale; }

/// One kernel call per kind of weight; each returns how many of the first calls it took.
struct Runner {
  Input input;
  std::span<const LinearCall> calls;

  /// Fills `jobs` from the leading calls whose weight is a `Kind` that `fits` the first.
  template <typename Kind, typename Job, typename Fits, typename Make>
  size_t collect(std::array<Job, kMaxJobs>& jobs, const Fits& fits, const Make& make) const {
    size_t count = 0;
    while (count < calls.size() && count < kMaxJobs) {
      const auto* weight = std::get_if<Kind>(&calls[count].layer->weight);
      if (!weight || !fits(*weight) || is_scaled(*calls[count].layer)) break;
      jobs[count] = make(*weight, calls[count]);
      ++count;
    }
    return count;
  }

  size_t operator()(const DenseWeight& first) {
    std::array<kernels::MatmulDenseJob, kMaxJobs> jobs;
    const size_t count = collect<DenseWeight>(
        jobs, [&](const DenseWeight& w) { return w.weight.dtype() == first.weight.dtype(); },
        [&](const DenseWeight& w, const LinearCall& call) {
          return kernels::MatmulDenseJob{w.weight.data(), w.weight.dtype(), call.layer->rows, output_of(call)};
        });
    input.matmul.compute = first.weight.dtype();
    require_entry(input.backend, input.backend.kernels().matmul_dense, "matmul_dense")(
        input.backend.context(), input.matmul, jobs.data(), static_cast<int64_t>(count));
    return count;
  }

  size_t operator()(const Weight4Bit& first) {
    std::array<kernels::Matmul4BitJob, kMaxJobs> jobs;
    const size_t count = collect<Weight4Bit>(
        jobs, [&](const Weight4Bit& w) { return w.compute == first.compute; }, job_of);
    input.matmul.compute = first.compute;
    require_entry(input.backend, input.backend.kernels().matmul_4bit, "matmul_4bit")(
        input.backend.context(), input.matmul, jobs.data(), static_cast<int64_t>(count));
    return count;
  }

  size_t operator()(const WeightInt8& first) {
    std::array<kernels::MatmulInt8Job, kMaxJobs> jobs;
    const size_t count = collect<WeightInt8>(
        jobs, [&](const WeightInt8& w) { return w.threshold == first.threshold; }, int8_job_of);
    input.matmul.compute = int8_compute(input.matmul.x_dtype);
    require_entry(input.backend, input.backend.kernels().matmul_int8, "matmul_int8")(
        input.backend.context(), input.matmul, first.threshold, jobs.data(), static_cast<int64_t>(count));
    return count;
  }
};

/// f32 (m, width): the update's room, or a tensor of its own.
Tensor room_for(const ops::Backend& backend, const LowRank& update, int64_t m, int64_t width) {
  if (update.room && m <= LowRank::kRoomRows && m * width <= update.room.count()) return update.room;
  return backend.empty(DType::f32, {m, width});
}

/// Through fp32 between the two products.
void add_update(const ops::Backend& backend, ConstValues x, int64_t m, const LinearCall& call, bool batch_invariant) {
  const LowRank& update = *call.layer->update;
  const int64_t rank = update.a.dim(0);
  Tensor low = room_for(backend, update, m, rank);
  const auto multiply = [&](ConstValues from, const Tensor& w, const kernels::MatmulOutput& out) {
    const kernels::MatmulDenseJob job{w.data(), DType::f32, w.dim(0), out};
    backend.kernels().matmul_dense(backend.context(), {from.data, m, w.dim(1), DType::f32, batch_invariant, from.dtype},
                                   &job, 1);
  };
  multiply(x, update.a, {low.data(), rank});
  multiply({low.data(), DType::f32}, update.b, {call.y.data, call.y_stride, nullptr, true, call.y.dtype});
}

/// The product by itself, then its columns scaled; the update is added later.
void run_scaled(const ops::Backend& backend, ConstValues x, int64_t m, const LinearCall& call, bool batch_invariant) {
  const Linear& layer = *call.layer;
  Linear bare = layer;
  bare.bias = {};
  bare.update = nullptr;
  Tensor product = room_for(backend, *layer.update, m, layer.rows);
  const std::array calls{LinearCall{&bare, {product.data(), DType::f32}, layer.rows}};
  run_linear(backend, x, m, calls, batch_invariant);
  backend.kernels().scale_columns(
      backend.context_for(m * layer.rows),
      {product.as<float>(), layer.update->row_scale.as<float>(), layer.bias ? layer.bias.as<float>() : nullptr, m,
       layer.rows, static_cast<float*>(call.y.data), call.y_stride, call.accumulate, DType::f32, call.y.dtype});
}

}  // namespace

Weight to_device(const ops::Backend& backend, const Weight& weight) {
  Weight result = weight;
  if (auto* dense = std::get_if<DenseWeight>(&result)) dense->weight = backend.to_device(dense->weight);
  if (auto* packed = std::get_if<Weight4Bit>(&result)) packed->weight = ops::to_device(backend, packed->weight);
  if (auto* rows = std::get_if<WeightInt8>(&result)) rows->weight = ops::to_device(backend, rows->weight);
  return result;
}

Weight to_host(const ops::Backend& backend, const Weight& weight) {
  Weight result = weight;
  if (auto* dense = std::get_if<DenseWeight>(&result)) dense->weight = backend.to_host(dense->weight);
  if (auto* packed = std::get_if<Weight4Bit>(&result)) packed->weight = ops::to_host(backend, packed->weight);
  if (auto* rows = std::get_if<WeightInt8>(&result)) rows->weight = ops::to_host(backend, rows->weight);
  return result;
}

void run_linear(const ops::Backend& backend, ConstValues x, int64_t m, std::span<const LinearCall> calls,
                bool batch_invariant) {
  const std::span<const LinearCall> all = calls;
  while (!calls.empty()) {
    const Linear& first = *calls.front().layer;
    if (is_scaled(first)) {
      run_scaled(backend, x, m, calls.front(), batch_invariant);
      calls = calls.subspan(1);
      continue;
    }
    Runner runner{{backend, {x.data, m, first.cols, DType::f32, batch_invariant, x.dtype}}, calls};
    calls = calls.subspan(std::visit(runner, first.weight));
  }
  for (const LinearCall& call : all)
    if (call.layer->update) add_update(backend, x, m, call, batch_invariant);
}

namespace {

/// What both kinds of weight have alike. `fits`: weights that go into one call with the first.
template <typename Kind, typename Job, typename Fits, typename Make>
bool run_fused(const ops::Backend& backend,
               bool (*entry)(const kernels::Context&, const kernels::FusedMatmulArgs<Job>&),
               kernels::FusedMatmulArgs<Job> args, const Norm* norm, std::span<const LinearCall> calls,
               const Gate* gate, const Fits& fits, const Make& make) {
  if (!entry || calls.size() > kMaxJobs) return false;
  if (norm && (norm->kind != NormKind::rms || norm->weight.count() != args.input.cols)) return false;
  std::array<Job, kMaxJobs> jobs;
  for (size_t j = 0; j < calls.size(); ++j) {
    const auto* weight = std::get_if<Kind>(&calls[j].layer->weight);
    if (!weight || !fits(*weight) || calls[j].layer->update) return false;
    jobs[j] = make(*weight, calls[j]);
  }
  args.jobs = jobs.data();
  args.count = static_cast<int64_t>(calls.size());
  if (norm) {
    args.norm_weight = norm->weight.as<float>();
    args.eps = norm->eps;
    args.weight_offset = norm->weight_offset;
  }
  if (gate) {
    if (calls.size() != 2 || jobs[0].rows != jobs[1].rows) return false;
    args.is_gated = true;
    args.activation = gate->activation;
    args.gated_out = {.y = gate->out.data, .y_stride = jobs[0].rows, .y_dtype = gate->out.dtype};
  }
  return entry(backend.context(), args);
}

}  // namespace

bool run_fused_linear(const ops::Backend& backend, const Norm* norm, ConstValues x, int64_t m,
                      std::span<const LinearCall> calls, const Gate* gate, bool batch_invariant) {
  const Linear& layer = *calls.front().layer;
  kernels::MatmulInput input{x.data, m, layer.cols, DType::f32, batch_invariant, x.dtype};
  if (const auto* first = std::get_if<Weight4Bit>(&layer.weight)) {
    input.compute = first->compute;
    return run_fused<Weight4Bit, kernels::Matmul4BitJob>(
        backend, backend.kernels().matmul_4bit_fused, {.input = input}, norm, calls, gate,
        [&](const Weight4Bit& w) { return w.compute == first->compute; }, job_of);
  }
  if (const auto* first = std::get_if<WeightInt8>(&layer.weight)) {
    // The residual stream, fp32, is what a norm reads: its results tell what activations are.
    input.compute = int8_compute(!norm ? x.dtype : gate ? gate->out.dtype : calls.front().y.dtype);
    return run_fused<WeightInt8, kernels::MatmulInt8Job>(
        backend, backend.kernels().matmul_int8_fused, {.input = input, .threshold = first->threshold}, norm, calls,
        gate, [&](const WeightInt8& w) { return w.threshold == first->threshold; }, int8_job_of);
  }
  return false;
}

}  // namespace nibble::nn
