// matmul_4bit: which kernel takes a call.
#include "kernels/cuda/matmul_4bit.h"

#include <bit>

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/any_shape.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {

bool is_regular(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count,
                int64_t min_block) {
  if (context.capability < 80 || input.compute == DType::f32 || input.cols % min_block != 0 ||
      input.cols > 0x7fffff00 || input.m > 0x7fffff00)
    return false;
  for (int64_t j = 0; j < count; ++j) {
    const Matmul4BitJob& job = jobs[j];
    if (job.block < min_block || !std::has_single_bit(static_cast<uint64_t>(job.block)) ||
        !is_aligned(job.packed, 16) || !is_aligned(job.absmax.codes, 4) || is_nested(job) != is_nested(jobs[0]) ||
        job.rows > 0x7fffff00 || job.rows * (input.cols / 32) > 0xffffffff ||
        !std::equal(job.code_book, job.code_book + 16, jobs[0].code_book))
      return false;
  }
  return true;
}

DeviceJobs with_weights(const Matmul4BitJob* jobs, int64_t count, int tile_rows) {
  DeviceJobs all = device_jobs(jobs, count, tile_rows);
  for (int64_t j = 0; j < count; ++j)
    all.jobs[j].weight = {jobs[j].packed, jobs[j].absmax, std::countr_zero(static_cast<uint64_t>(jobs[j].block))};
  return all;
}

float book_scale(const float* code_book, DType compute) {
  if (compute != DType::bf16) return 1.0f;
  if (code_book[1] == -0.6961928009986877f) return 1.436715f;
  if (code_book[1] == 0.0052083334885537624f) return 12.0f;
  return 1.0f;
}

namespace {

/// One element at a time.
struct Decode4Bit {
  const uint8_t* packed;
  Absmax absmax;
  int64_t cols, block;
  float book[16];

  __device__ float operator()(int64_t row, int64_t column) const {
    const int64_t i = row * cols + column;
    return __fmul_rn(book[packed[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15], absmax_at(absmax, i / block));
  }
};

void multiply_slowly(const Context& context, const MatmulInput& input, const Matmul4BitJob& job) {
  Decode4Bit decode{job.packed, job.absmax, input.cols, job.block, {}};
  std::copy_n(job.code_book, 16, decode.book);
  multiply_any_shape(context, input, job.rows, decode, job.out);
}

/// Rows of x from which decoding the weight to memory wins over decoding it in every tile.
constexpr int64_t kLibraryRows = 1536;

/// Rows of x up to which it should be decoded beside the products: of more, cuBLASLt makes up for decoding it before.
constexpr int64_t kMostAheadRows = 3072;

/// True if the call was taken.
template <typename T, bool kNested>
bool multiply_regular(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if (multiply_few<T, kNested>(context, {.input = input, .jobs = jobs, .count = count})) return true;
  if (input.batch_invariant || !is_regular(context, input, jobs, count, 32)) return false;
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    if (input.m >= kLibraryRows && input.m <= kMostAheadRows && context.capability == 90 &&
        is_regular(context, input, jobs, count, 64) && multiply_ahead<T>(context, input, jobs, count))
      return true;
  if (input.m >= kLibraryRows && multiply_by_library<T>(context, input, jobs, count)) return true;
  if (context.capability != 90) return multiply_by_library<T>(context, input, jobs, count);
  if (input.m > kTileRows && is_regular(context, input, jobs, count, 64) &&
      multiply_pairs<T>(context, input, jobs, count))
    return true;
  if (input.m > kTileRows || !is_regular(context, input, jobs, count, 64) ||
      !multiply_tiles<T>(context, {.input = input, .jobs = jobs, .count = count}))
    multiply_wide_tiles<T>(context, input, jobs, count);
  return true;
}

void multiply(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  const bool nested = is_nested(jobs[0]);
  if (input.compute == DType::bf16 && (nested ? multiply_regular<__nv_bfloat16, true>(context, input, jobs, count)
                                              : multiply_regular<__nv_bfloat16, false>(context, input, jobs, count)))
    return;
  if (input.compute == DType::f16 && (nested ? multiply_regular<__half, true>(context, input, jobs, count)
                                             : multiply_regular<__half, false>(context, input, jobs, count)))
    return;
  for (int64_t j = 0; j < count; ++j) multiply_slowly(context, input, jobs[j]);
}

}  // namespace

void matmul_4bit(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if (input.m == 0) return;
  for (int64_t first = 0; first < count; first += kMaxJobs)
    multiply(context, input, jobs + first, std::min<int64_t>(kMaxJobs, count - first));
}

namespace {

template <typename T>
bool multiply_fused(const Context& context, const Fused4BitArgs& args) {
  const MatmulInput& input = args.input;
  if (is_nested(args.jobs[0]) ? multiply_few<T, true>(context, args) : multiply_few<T, false>(context, args))
    return true;
  return context.capability == 90 && !input.batch_invariant && !args.norm_weight && input.m <= kTileRows &&
         is_regular(context, input, args.jobs, args.count, 64) && multiply_tiles<T>(context, args);
}

}  // namespace

bool matmul_4bit_fused(const Context& context, const Fused4BitArgs& args) {
  if (args.count > kMaxJobs ||
      (args.norm_weight && (!is_aligned(args.input.x, 16) || !is_aligned(args.norm_weight, 16))))
    return false;
  if (args.input.compute == DType::bf16) return multiply_fused<__nv_bfloat16>(context, args);
  if (args.input.compute == DType::f16) return multiply_fused<__half>(context, args);
  return false;
}

}  // namespace nibble::kernels::cuda
