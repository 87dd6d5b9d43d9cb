// quantize_8bit and dequantize_8bit: one block of threads a block of values, the code book in shared memory.
#include <algorithm>

#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/entries.h"
#include "quant/format.h"

namespace nibble::kernels::cuda {
namespace {

struct Book {
  float values[256];
};

/// Index of the nearest value; half way between two, the even index; 0 for NaN.
__device__ __forceinline__ uint8_t encode(const float* book, float y) {
  if (y != y) return 0;
  int below = -1;
#pragma unroll
  for (int step = 128; step > 0; step /= 2)
    if (book[below + step] < y) below += step;
  if (below < 0) return 0;
  if (below == 254 && book[255] < y) return 255;
  const int above = below + 1;
  const float midpoint = __fmul_rn(__fadd_rn(book[below], book[above]), 0.5f);
  if (y == midpoint) return static_cast<uint8_t>(below % 2 == 0 ? below : above);
  return static_cast<uint8_t>(y < midpoint ? below : above);
}

template <typename T>
__global__ void __launch_bounds__(256)
    quantize_kernel(const T* x, int64_t count, int64_t block, const __grid_constant__ Book book, uint8_t* codes,
                    float* absmax) {
  __shared__ float values[256];
  values[threadIdx.x] = book.values[threadIdx.x];
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int64_t blocks = quant::block_count(count, block), warps = int64_t{gridDim.x} * 8;
  for (int64_t b = int64_t{blockIdx.x} * 8 + threadIdx.x / 32; b < blocks; b += warps) {
    const int64_t begin = b * block, end = min(count, begin + block);
    float maximum = 0;
#pragma unroll 4
    for (int64_t i = begin + lane; i < end; i += 32) maximum = fmaxf(maximum, fabsf(to_float(x[i])));
    maximum = warp_max(maximum);
    if (maximum < 1.17549435e-38f) maximum = 0;
    if (lane == 0) absmax[b] = maximum;
    const float inverse = maximum == 0 ? __int_as_float(0x7fc00000) : __frcp_rn(maximum);
#pragma unroll 4
    for (int64_t i = begin + lane; i < end; i += 32) codes[i] = encode(values, __fmul_rn(to_float(x[i]), inverse));
  }
}

template <typename T>
__global__ void __launch_bounds__(256) dequantize_kernel(const uint8_t* codes, const float* absmax, int64_t count,
                                                         int64_t block, const __grid_constant__ Book book, T* out) {
  __shared__ float values[256];
  values[threadIdx.x] = book.values[threadIdx.x];
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * 256;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += stride)
    out[i] = from_float<T>(__fmul_rn(values[codes[i]], absmax[i / block]));
}

Book book_of(const float* values) {
  Book book;
  std::copy_n(values, 256, book.values);
  return book;
}

}  // namespace

void quantize_8bit(const Context& context, const Quantize8BitArgs& args) {
  if (args.count == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    const unsigned blocks =
        blocks_for(quant::block_count(args.count, args.block), 8, int64_t{context.multiprocessors} * 8);
    quantize_kernel<T><<<blocks, 256, 0, stream_of(context.stream)>>>(
        static_cast<const T*>(args.x), args.count, args.block, book_of(args.code_book), args.codes, args.absmax);
  });
}

void dequantize_8bit(const Context& context, const Dequantize8BitArgs& args) {
  if (args.count == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    dequantize_kernel<T>
        <<<blocks_for(args.count, 1024, int64_t{context.multiprocessors} * 32), 256, 0, stream_of(context.stream)>>>(
            args.codes, args.absmax, args.count, args.block, book_of(args.code_book), static_cast<T*>(args.out));
  });
}

}  // namespace nibble::kernels::cuda
