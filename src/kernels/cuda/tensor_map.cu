// The driver's function that describes a matrix, found at run time: nothing links against the driver.
#include "kernels/cuda/tensor_map.h"

#include <cuda_runtime.h>

namespace nibble::kernels::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const auto status =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
  const auto status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  return status == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
}

}  // namespace

namespace {

bool describe_bytes(CUtensorMap& map, const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows,
                    int box_cols) {
  static const Encode encode = find_encode();
  if (!encode) return false;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const auto swizzle = box_cols == 32   ? CU_TENSOR_MAP_SWIZZLE_32B
                       : box_cols == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                        : CU_TENSOR_MAP_SWIZZLE_128B;
  return encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool describe_matrix(CUtensorMap& map, const void* data, int64_t rows, int64_t cols, int box_rows, int box_cols) {
  return describe_bytes(map, data, rows, cols, cols, box_rows, box_cols);
}

bool describe_rows(CUtensorMap& map, const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows) {
  return describe_bytes(map, data, rows, cols, stride, box_rows, 128);
}

bool describe_tiles(CUtensorMap& map, const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows,
                    int box_cols) {
  static const Encode encode = find_encode();
  if (!encode) return false;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(2 * stride)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  return encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

namespace {

/// (heads, rows, head_dim), strides in bytes.
bool describe_boxes(CUtensorMap& map, const void* data, int64_t heads, int64_t rows, int64_t head_dim,
                    int64_t row_stride, int64_t head_stride, int box_rows) {
  static const Encode encode = find_encode();
  if (!encode) return false;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(heads)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_stride), static_cast<cuuint64_t>(head_stride)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows), 1}, steps[] = {1, 1, 1};
  return encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool describe_heads(CUtensorMap& map, const void* data, int64_t heads, int64_t capacity, int64_t keys, int64_t head_dim,
                    int box_rows) {
  return describe_boxes(map, data, heads, keys, head_dim, 2 * head_dim, 2 * head_dim * capacity, box_rows);
}

bool describe_tokens(CUtensorMap& map, const void* data, int64_t tokens, int64_t heads, int64_t head_dim,
                     int box_rows) {
  return describe_boxes(map, data, heads, tokens, head_dim, 2 * head_dim * heads, 2 * head_dim, box_rows);
}

}  // namespace nibble::kernels::cuda
