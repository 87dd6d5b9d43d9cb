// embed: rows of a table.
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

template <typename T, typename Out>
__global__ void embed_kernel(const T* table, const int32_t* ids, int64_t cols, float scale, Out* out, bool accumulate) {
  const T* row = table + static_cast<int64_t>(ids[blockIdx.x]) * cols;
  Out* target = out + static_cast<int64_t>(blockIdx.x) * cols;
  for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
    const float value = scale * to_float(row[c]);
    target[c] = from_float<Out>(accumulate ? to_float(target[c]) + value : value);
  }
}

}  // namespace

void embed(const Context& context, const EmbedArgs& args) {
  if (args.count == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    with_activation_type(args.out_dtype, [&](auto out) {
      using Out = decltype(out);
      embed_kernel<T, Out><<<static_cast<unsigned>(args.count), 256, 0, stream_of(context.stream)>>>(
          static_cast<const T*>(args.table), args.ids, args.cols, args.scale, static_cast<Out*>(args.out),
          args.accumulate);
    });
  });
}

}  // namespace nibble::kernels::cuda
