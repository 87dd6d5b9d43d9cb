// matmul_dense: which kernel takes a call.
#include "kernels/cuda/dense_library.h"
#include "kernels/cuda/device/any_shape.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/device/weights_plain.cuh"
#include "kernels/cuda/device/weights_tile_plain.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

template <typename T>
struct DecodeDense {
  const T* w;
  int64_t cols;

  __device__ float operator()(int64_t row, int64_t column) const { return to_float(w[row * cols + column]); }
};

bool is_regular(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count) {
  if (context.capability < 80 || input.compute == DType::f32 || input.cols % 8 != 0 || input.cols > 0x3fffff00 ||
      input.m > 0x7fffff00)
    return false;
  for (int64_t j = 0; j < count; ++j)
    if (jobs[j].dtype != input.compute || !is_aligned(jobs[j].w, 16) || jobs[j].rows > 0x7fffff00) return false;
  return true;
}

DeviceJobs with_weights(const MatmulDenseJob* jobs, int64_t count, int tile_rows) {
  DeviceJobs all = device_jobs(jobs, count, tile_rows);
  for (int64_t j = 0; j < count; ++j) all.jobs[j].weight = {static_cast<const uint8_t*>(jobs[j].w), {}, 0};
  return all;
}

/// All jobs by cuBLASLt, or none.
template <typename T>
bool multiply_by_library(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count) {
  if (!has_dense_library()) return false;
  for (int64_t j = 0; j < count; ++j)
    if (!suits_dense_library(jobs[j].out)) return false;
  const int64_t x_bytes = is_rounded<T>(input) ? 0 : input.m * input.cols * static_cast<int64_t>(sizeof(T));
  auto* scratch = static_cast<uint8_t*>(context.scratch->reserve(kDenseLibraryBytes + x_bytes));
  const void* x = input.x;
  if (x_bytes > 0) {
    x = scratch + kDenseLibraryBytes;
    round_x(context, input, reinterpret_cast<T*>(scratch + kDenseLibraryBytes));
  }
  for (int64_t j = 0; j < count; ++j) {
    const MatmulDenseJob& job = jobs[j];
    if (!dense_multiply(context, x, job.w, job.dtype, input.m, job.rows, input.cols, job.out, scratch)) return false;
  }
  return true;
}

/// True if the call was taken; as in matmul_4bit.cu.
template <typename T>
bool multiply_regular(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count) {
  const int64_t limit = few_rows_limit<FewRowsDense<T>>(context, input.cols);
  if (limit > 0 && (input.batch_invariant || input.m <= limit)) {
    FewRowsArgs args{};
    args.jobs = with_weights(jobs, count, kFewRowsTile);
    launch_few_rows_each<FewRowsDense<T>>(context, input, args, limit);
    return true;
  }
  if (input.batch_invariant) return false;
  if (multiply_by_library<T>(context, input, jobs, count)) return true;
  if (context.capability != 90) return false;
  with_plain_tile_shape<T>(input.m, [&](auto shape) {
    using Launch = TileLaunch<TileDense<T>, decltype(shape)>;
    TileArgs args{};
    args.jobs = with_weights(jobs, count, Launch::kRows);
    const TileScratch scratch = Launch::reserve(context, input);
    Launch::template prepare<T, ColumnOrder::runs_of_8>(context, input, scratch);
    Launch::run(context, input, scratch, args);
  });
  return true;
}

void multiply(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count) {
  if (is_regular(context, input, jobs, count)) {
    const bool is_done = input.compute == DType::bf16 ? multiply_regular<__nv_bfloat16>(context, input, jobs, count)
                                                      : multiply_regular<__half>(context, input, jobs, count);
    if (is_done) return;
  }
  for (int64_t j = 0; j < count; ++j)
    with_float_type(jobs[j].dtype, [&](auto element) {
      using T = decltype(element);
      multiply_any_shape(context, input, jobs[j].rows, DecodeDense<T>{static_cast<const T*>(jobs[j].w), input.cols},
                         jobs[j].out);
    });
}

}  // namespace

void matmul_dense(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count) {
  if (input.m == 0) return;
  for (int64_t first = 0; first < count; first += kMaxJobs)
    multiply(context, input, jobs + first, std::min<int64_t>(kMaxJobs, count - first));
}

}  // namespace nibble::kernels::cuda
