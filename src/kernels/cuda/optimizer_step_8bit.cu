// optimizer_step_8bit: one launch for all parameters; a warp a state block, decoded, stepped and encoded in registers.
#include <vector>

#include "kernels/cuda/device/code_tables.cuh"
#include "kernels/cuda/device/optimizer_job.cuh"
#include "kernels/cuda/device/optimizer_norms.cuh"
#include "kernels/cuda/device/optimizer_rules.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

struct StepArgs {
  OptimizerTable table;
  const CodeTables* books;
};

/// NaN if either is.
__device__ __forceinline__ float larger_or_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
#else
  return a != a || b != b ? __int_as_float(0x7fc00000) : fmaxf(a, b);
#endif
}

/// The largest of numbers that are not negative.
__device__ __forceinline__ float largest_of_warp(float x) {
#if __CUDA_ARCH__ >= 800
  return __uint_as_float(__reduce_max_sync(kFullMask, __float_as_uint(x)));
#else
  return warp_max(x);
#endif
}

/// The book of state k: the second is for squares.
constexpr int book_of(int k) { return k == 1 ? 1 : 0; }

template <int kStates>
__device__ __forceinline__ void largest_of_eight(const float (&s)[8][3], float (&largest)[3]) {
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    largest[k] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) largest[k] = larger_or_nan(largest[k], fabsf(s[i][k]));
  }
}

/// Elements whose states are not finite keep their parameter and lose their states.
template <int kStates>
__device__ __forceinline__ void keep_spoiled(const DeviceJob& job, const Share& share, float (&p)[8],
                                             float (&s)[8][3]) {
  RawEight raw;
  raw.load(job.parameter, job.dtype, share);
  float old[8];
  raw.unpack(job.dtype, old);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    bool is_finite = true;
#pragma unroll
    for (int k = 0; k < kStates; ++k) is_finite = is_finite && fabsf(s[i][k]) <= 3.40282347e38f;
    if (is_finite) continue;
    p[i] = old[i];
#pragma unroll
    for (int k = 0; k < kStates; ++k) s[i][k] = 0;
  }
}

__device__ __forceinline__ uint2 load_codes(const uint8_t* from, const Share& share) {
  if (share.is_vector) return __ldcs(reinterpret_cast<const uint2*>(from + share.begin));
  uint2 codes{0, 0};
  for (int i = 0; i < share.count; ++i) (i < 4 ? codes.x : codes.y) |= unsigned{from[share.begin + i]} << (8 * (i % 4));
  return codes;
}

__device__ __forceinline__ void store_codes(uint8_t* to, const Share& share, const uint2& codes) {
  if (share.is_vector) return __stcs(reinterpret_cast<uint2*>(to + share.begin), codes);
  for (int i = 0; i < share.count; ++i)
    to[share.begin + i] = static_cast<uint8_t>((i < 4 ? codes.x : codes.y) >> (8 * (i % 4)));
}

__device__ __forceinline__ unsigned join(unsigned a, unsigned b, unsigned c, unsigned d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

/// State k of a block to its codes, by the block's largest magnitude.
template <int k, typename Codes>
__device__ __forceinline__ void encode_state(const Codes& codes, const DeviceJob& job, const Share& share,
                                             int64_t block, const float (&s)[8][3], float largest) {
  const float absmax = largest < 1.17549435e-38f ? 0.0f : largest;
  uint2 packed{0, 0};
  if (absmax > 0) {
    const float inverse = __frcp_rn(absmax);
    unsigned code[8];
    float y[8];
    // + 0 makes a zero of either sign the positive one, but not a product that underflows.
#pragma unroll
    for (int i = 0; i < 8; ++i) y[i] = __fmaf_rn(s[i][k], inverse, 0.0f);
    codes.template encode<book_of(k)>(y, code);
    packed = {join(code[0], code[1], code[2], code[3]), join(code[4], code[5], code[6], code[7])};
  }
  store_codes(static_cast<uint8_t*>(job.states[k]), share, packed);
  if (threadIdx.x % 32 == 0) job.absmax[k][block] = absmax;
}

template <typename Rule, typename Codes>
__device__ __forceinline__ void step_block(const Codes& codes, const DeviceJob& job, int64_t block) {
  constexpr int kStates = Rule::kStates;
  const Share share(job, block);
  RawEight raw_p, raw_g;
  uint2 raw_s[kStates];
  float absmax[kStates], p[8], g[8], s[8][3], d[8], largest[3];
  raw_p.load(job.parameter, job.dtype, share);
  raw_g.load(job.gradient, job.gradient_dtype, share);
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    raw_s[k] = load_codes(static_cast<const uint8_t*>(job.states[k]), share);
    absmax[k] = job.absmax[k][block];
  }
  raw_p.unpack(job.dtype, p);
  raw_g.unpack(job.gradient_dtype, g);
#pragma unroll
  for (int k = 0; k < kStates; ++k)
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float value = k == 1 ? codes.template decode<1>(raw_s[k], i) : codes.template decode<0>(raw_s[k], i);
      s[i][k] = __fmul_rn(value, absmax[k]);
    }
  if (!share.is_vector) {
#pragma unroll
    for (int k = 0; k < kStates; ++k)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i >= share.count) s[i][k] = 0;
  }
  const OptimizerScalars c = job.scalars;
  step_eight<Rule>(c, p, g, s, d);
  move_eight(c, d, p);
  largest_of_eight<kStates>(s, largest);
  bool is_finite = true;
#pragma unroll
  for (int k = 0; k < kStates; ++k) is_finite = is_finite && largest[k] <= 3.40282347e38f;
  if (!is_finite) {
    keep_spoiled<kStates>(job, share, p, s);
    largest_of_eight<kStates>(s, largest);
  }
  store_eight(job.parameter, job.dtype, share, p);
  encode_state<0>(codes, job, share, block, s, largest_of_warp(largest[0]));
  if constexpr (kStates > 1) encode_state<1>(codes, job, share, block, s, largest_of_warp(largest[1]));
  if constexpr (kStates > 2) encode_state<2>(codes, job, share, block, s, largest_of_warp(largest[2]));
}

/// As many as the registers of a rule allow without spilling.
template <typename Rule>
constexpr int threads_of() {
  return Rule::kStates == 3 ? 512 : Rule::kIsQuotient ? 768 : 1024;
}

template <typename Rule, int kCopies>
__global__ void __launch_bounds__(threads_of<Rule>(), 1) step_8bit_kernel(const __grid_constant__ StepArgs args) {
  extern __shared__ unsigned char shared[];
  const SharedCodes<kCopies> codes(shared, args.books);
  const DeviceJob* jobs = args.table.jobs;
  const int64_t share = (args.table.blocks + gridDim.x - 1) / gridDim.x;
  const int64_t end = min(args.table.blocks, share * (blockIdx.x + 1));
  int64_t b = share * blockIdx.x + threadIdx.x / 32;
  if (b >= end) return;
  int j = job_of_block(jobs, args.table.count, b);
  for (; b < end; b += blockDim.x / 32) {
    while (j + 1 < args.table.count && jobs[j + 1].blocks_before <= b) ++j;
    step_block<Rule>(codes, jobs[j], b - jobs[j].blocks_before);
  }
}

/// States in 8 bits, for the pass that measures.
struct CodedStates {
  const CodeTables* books;
  template <typename Rule>
  __device__ __forceinline__ void load(const DeviceJob& job, int64_t i, float (&s)[3]) const {
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k)
      s[k] = __fmul_rn(books[book_of(k)].values[static_cast<const uint8_t*>(job.states[k])[i]],
                       job.absmax[k][i / kStateBlock]);
  }
  template <typename Rule>
  __device__ __forceinline__ static bool is_kept(const float (&s)[3]) {
    bool is_finite = true;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) is_finite = is_finite && fabsf(s[k]) <= 3.40282347e38f;
    return !is_finite;
  }
};

template <typename Rule, int kCopies>
void launch(const Context& context, const StepArgs& args) {
  const auto kernel = step_8bit_kernel<Rule, kCopies>;
  constexpr int kBytes = SharedCodes<kCopies>::kBytes;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  constexpr int kThreads = threads_of<Rule>();
  const unsigned blocks = blocks_for(args.table.blocks, kThreads / 32, context.multiprocessors);
  kernel<<<blocks, kThreads, kBytes, stream_of(context.stream)>>>(args);
}

std::vector<DeviceJob> device_jobs(const OptimizerStep8BitArgs& args) {
  std::vector<DeviceJob> jobs;
  jobs.reserve(static_cast<size_t>(args.count));
  for (int64_t i = 0; i < args.count; ++i) {
    const OptimizerJob8Bit& from = args.jobs[i];
    if (from.of.count == 0) continue;
    DeviceJob job = device_job(from.of);
    uint8_t* const codes[3] = {from.codes1, from.codes2, from.codes3};
    float* const absmax[3] = {from.absmax1, from.absmax2, from.absmax3};
    for (int k = 0; k < 3; ++k) {
      job.states[k] = codes[k];
      job.absmax[k] = absmax[k];
      job.is_aligned = job.is_aligned && is_aligned(codes[k], 8);
    }
    jobs.push_back(job);
  }
  return jobs;
}

}  // namespace

void optimizer_step_8bit(const Context& context, const OptimizerStep8BitArgs& args) {
  std::vector<DeviceJob> jobs = device_jobs(args);
  if (jobs.empty()) return;
  constexpr int64_t kBooks = (2 * int64_t{sizeof(CodeTables)} + 255) / 256 * 256;
  auto* memory = static_cast<uint8_t*>(context.scratch->reserve(kBooks + table_bytes(jobs)));
  const cudaStream_t stream = stream_of(context.stream);
  auto* books = reinterpret_cast<CodeTables*>(memory);
  copy_small(books, &code_tables(args.code_book1), sizeof(CodeTables), stream);
  copy_small(books + 1, &code_tables(args.code_book2), sizeof(CodeTables), stream);
  const StepArgs step{upload_jobs(jobs, memory + kBooks, stream), books};
  with_rule(args.rule, [&](auto rule) {
    using Rule = decltype(rule);
    if (has_trust_ratio(jobs)) measure_norms<Rule>(context, step.table, CodedStates{books});
    if (context.capability >= 90 && context.capability < 120)
      launch<Rule, 32>(context, step);
    else
      launch<Rule, 8>(context, step);
  });
}

}  // namespace nibble::kernels::cuda
