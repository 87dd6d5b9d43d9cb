// 4-bit weights decoded to memory, panels of rows at a time, for NVIDIA's dense product.
#include <bit>

#include "kernels/cuda/dense_library.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/panel_4bit.cuh"
#include "kernels/cuda/matmul_4bit.h"

namespace nibble::kernels::cuda {
namespace {

/// Decoded at a time: most of it the L2 cache still holds when the product reads it, and products of fewer rows leave
/// multiprocessors idle at their end.
constexpr int64_t kPanelBytes = int64_t{64} << 20;

/// The absmax from block `first` on, a multiple of kNestedBlock.
Absmax absmax_from(Absmax absmax, int64_t first) {
  if (absmax.values) {
    absmax.values += first;
  } else {
    absmax.codes += first;
    absmax.nested_absmax += first / quant::kNestedBlock;
  }
  return absmax;
}

}  // namespace

template <typename T>
bool multiply_by_library(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if (!has_dense_library()) return false;
  constexpr int64_t kStep = 1024;
  const int64_t panel_rows = std::max(kStep, kPanelBytes / (2 * input.cols) / kStep * kStep);
  for (int64_t j = 0; j < count; ++j) {
    if (panel_rows * input.cols % (jobs[j].block * quant::kNestedBlock) != 0) return false;
    for (const int64_t rows : {std::min(panel_rows, jobs[j].rows), (jobs[j].rows - 1) % panel_rows + 1})
      if (!takes_dense_multiply(context, input.compute, input.m, rows, input.cols, jobs[j].out)) return false;
  }
  const int64_t x_bytes = is_rounded<T>(input) ? 0 : padded_to_256(input.m * input.cols * 2);
  auto* scratch =
      static_cast<uint8_t*>(context.scratch->reserve(kDenseLibraryBytes + x_bytes + panel_rows * input.cols * 2));
  void* panel = scratch + kDenseLibraryBytes + x_bytes;
  const void* x = input.x;
  if (x_bytes > 0) {
    x = scratch + kDenseLibraryBytes;
    round_x(context, input, reinterpret_cast<T*>(scratch + kDenseLibraryBytes));
  }
  for (int64_t j = 0; j < count; ++j)
    for (int64_t first = 0; first < jobs[j].rows; first += panel_rows) {
      const Matmul4BitJob& job = jobs[j];
      const int64_t rows = std::min(panel_rows, job.rows - first), element = first * input.cols;
      PanelArgs args{job.packed + element / 2,
                     absmax_from(job.absmax, element / job.block),
                     rows * input.cols / 8,
                     std::countr_zero(static_cast<uint64_t>(job.block)) - 3,
                     panel,
                     {}};
      std::copy_n(job.code_book, 16, args.book);
      const unsigned blocks =
          blocks_for(args.vectors, kPanelThreads * kPanelVectors, int64_t{context.multiprocessors} * 4);
      decode_panel_kernel<T><<<blocks, kPanelThreads, 0, stream_of(context.stream)>>>(args);
      if (!dense_multiply(context, x, panel, input.compute, input.m, rows, input.cols, output_from(job.out, 0, first),
                          scratch))
        return false;
    }
  return true;
}

template bool multiply_by_library<__nv_bfloat16>(const Context& context, const MatmulInput& input,
                                                 const Matmul4BitJob* jobs, int64_t count);
template bool multiply_by_library<__half>(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs,
                                          int64_t count);

}  // namespace nibble::kernels::cuda
