// The parameters of one optimizer call in device memory, and the eight elements of them that a lane works on.
#pragma once

#include <vector>

#include "kernels/cuda/device/optimizer_rules.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

/// One parameter with elements. States are codes or fp32.
struct DeviceJob {
  void* parameter;
  const void* gradient;
  void* states[3];
  float* absmax[3];
  double* norms;
  int64_t count;
  int64_t blocks_before;  // state blocks of the jobs before it
  int64_t chunks_before;  // as the call counts them
  OptimizerScalars scalars;
  DType dtype, gradient_dtype;
  bool is_aligned;  // every array for the widest accesses
};

/// The last job that begins at or before `block`.
__device__ __forceinline__ int job_of_block(const DeviceJob* jobs, int count, int64_t block) {
  int first = 0, end = count;
  while (end - first > 1) {
    const int middle = (first + end) / 2;
    if (jobs[middle].blocks_before <= block)
      first = middle;
    else
      end = middle;
  }
  return first;
}

__device__ __forceinline__ float load_one(const void* from, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(from)[i];
  if (dtype == DType::bf16) return to_float(static_cast<const __nv_bfloat16*>(from)[i]);
  return to_float(static_cast<const __half*>(from)[i]);
}

__device__ __forceinline__ void store_one(void* to, DType dtype, int64_t i, float value) {
  if (dtype == DType::f32)
    static_cast<float*>(to)[i] = value;
  else if (dtype == DType::bf16)
    static_cast<__nv_bfloat16*>(to)[i] = from_float<__nv_bfloat16>(value);
  else
    static_cast<__half*>(to)[i] = from_float<__half>(value);
}

/// A lane's share of a state block: elements begin to begin + count, which is 8 unless the block is the last or the
/// arrays are not aligned to whole vectors.
struct Share {
  int64_t begin;
  int count;
  bool is_vector;

  __device__ __forceinline__ Share(const DeviceJob& job, int64_t block_of_job) {
    const int64_t first = block_of_job * kStateBlock;
    begin = first + threadIdx.x % 32 * 8;
    count = static_cast<int>(min(int64_t{8}, max(int64_t{0}, job.count - begin)));
    is_vector = job.is_aligned && first + kStateBlock <= job.count;
  }
};

/// Eight elements as they lie in memory, so that loads are under way together before any is waited for. What is not
/// there is zero.
struct RawEight {
  uint4 words[2];

  __device__ __forceinline__ void load(const void* from, DType dtype, const Share& share) {
    if (share.is_vector) {
      const uint4* at =
          reinterpret_cast<const uint4*>(static_cast<const char*>(from) + share.begin * (dtype == DType::f32 ? 4 : 2));
      words[0] = __ldcs(at);
      if (dtype == DType::f32) words[1] = __ldcs(at + 1);
      return;
    }
    words[0] = words[1] = {0, 0, 0, 0};
    auto* half = reinterpret_cast<unsigned short*>(words);
    auto* whole = reinterpret_cast<uint32_t*>(words);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i >= share.count) continue;
      if (dtype == DType::f32)
        whole[i] = static_cast<const uint32_t*>(from)[share.begin + i];
      else
        half[i] = static_cast<const unsigned short*>(from)[share.begin + i];
    }
  }
  __device__ __forceinline__ void unpack(DType dtype, float (&values)[8]) const {
    if (dtype == DType::f32)
      Vector8<float>{words[0], words[1]}.unpack(values);
    else if (dtype == DType::bf16)
      Vector8<__nv_bfloat16>{words[0]}.unpack(values);
    else
      Vector8<__half>{words[0]}.unpack(values);
  }
};

__device__ __forceinline__ void store_eight(void* to, DType dtype, const Share& share, const float (&values)[8]) {
  if (!share.is_vector) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < share.count) store_one(to, dtype, share.begin + i, values[i]);
  } else if (dtype == DType::f32) {
    Vector8<float>::pack(values).store(static_cast<float*>(to) + share.begin);
  } else if (dtype == DType::bf16) {
    Vector8<__nv_bfloat16>::pack(values).store(static_cast<__nv_bfloat16*>(to) + share.begin);
  } else {
    Vector8<__half>::pack(values).store(static_cast<__half*>(to) + share.begin);
  }
}

/// d of eight elements, and their states a step on.
template <typename Rule>
__device__ __forceinline__ void step_eight(const OptimizerScalars& c, const float (&p)[8], float (&g)[8],
                                           float (&s)[8][3], float (&d)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) g[i] = scaled_gradient<Rule>(c, p[i], g[i]);
  if constexpr (!Rule::kIsQuotient) {
#pragma unroll
    for (int i = 0; i < 8; ++i) d[i] = Rule::step(c, g[i], s[i]);
  } else {
    bool is_special = !(c.eps <= 0x1p30f);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      Rule::advance(c, g[i], s[i]);
      d[i] = plain_quotient(Rule::top(g[i], s[i]), Rule::under(s[i]), c.eps, is_special);
    }
    if (is_special) {
#pragma unroll
      for (int i = 0; i < 8; ++i) d[i] = exact_quotient(Rule::top(g[i], s[i]), Rule::under(s[i]), c.eps);
    }
  }
}

__device__ __forceinline__ void move_eight(const OptimizerScalars& c, const float (&d)[8], float (&p)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) p[i] = __fmaf_rn(-c.rate, d[i], __fmul_rn(p[i], c.keep));
}

/// A parameter for the table, its states still missing.
inline DeviceJob device_job(const OptimizerParameter& of) {
  DeviceJob job{};
  job.parameter = of.parameter;
  job.gradient = of.gradient;
  job.norms = of.norms;
  job.count = of.count;
  job.chunks_before = of.chunks_before;
  job.scalars = of.scalars;
  job.dtype = of.dtype;
  job.gradient_dtype = of.gradient_dtype;
  job.is_aligned = is_aligned(of.parameter, 16) && is_aligned(of.gradient, 16);
  return job;
}

/// Copies at once into what the driver keeps, so that `from` may change on return.
inline void copy_small(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  constexpr size_t kPiece = 32768;
  for (size_t begin = 0; begin < bytes; begin += kPiece)
    cudaMemcpyAsync(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                    bytes - begin < kPiece ? bytes - begin : kPiece, cudaMemcpyHostToDevice, stream);
}

/// What the kernels of one call read.
struct OptimizerTable {
  DeviceJob* jobs;
  int count;
  int64_t blocks, chunks;
};

/// Numbers the jobs' blocks, and puts them at `to` in device memory.
inline OptimizerTable upload_jobs(std::vector<DeviceJob>& jobs, void* to, cudaStream_t stream) {
  OptimizerTable table{static_cast<DeviceJob*>(to), static_cast<int>(jobs.size()), 0, 0};
  for (DeviceJob& job : jobs) {
    job.blocks_before = table.blocks;
    table.blocks += (job.count + kStateBlock - 1) / kStateBlock;
    table.chunks = job.chunks_before + (job.count + kOptimizerChunk - 1) / kOptimizerChunk;
  }
  copy_small(to, jobs.data(), jobs.size() * sizeof(DeviceJob), stream);
  return table;
}

inline int64_t table_bytes(const std::vector<DeviceJob>& jobs) {
  return (static_cast<int64_t>(jobs.size() * sizeof(DeviceJob)) + 255) / 256 * 256;
}

}  // namespace nibble::kernels::cuda
