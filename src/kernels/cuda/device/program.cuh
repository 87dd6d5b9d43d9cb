// A decode program: one cooperative launch that does what many launches of few_rows_kernel would, phase by phase, to
// the same bits. The ring of weights is filled on through the barriers between phases.
#pragma once

#include "kernels/cuda/device/program_ring.cuh"

namespace nibble::kernels::cuda {

struct ProgramArgs {
  const ProgramPhase* phases;
  int count;
  int x_bytes;  // of shared memory: the most that a phase asks for
  int places;   // of the ring
  int window;   // of them under way at a time
  int groups;   // of a block, for attention
  GridBarrier barrier;
};

inline constexpr int kProgramThreads = (kFewRowsWarps + 1 + kDecoders) * 32;
inline constexpr int kProgramPhases = 3;  // that a block knows of at a time
inline constexpr int kMostPlaces = 8;     // of the ring
inline constexpr int kSumBuffers = 4;     // tiles whose sums are waiting to be added

/// Where a program's shared memory is. The table's rows are half empty: sums fill them.
template <typename T, bool kNested>
struct ProgramShared {
  using Weights = FewRows4Bit<T, kNested>;
  static constexpr int kSums = Weights::kTableRow / 2;
  static constexpr int kSumPitch = Weights::kTableRow / 4;
  static constexpr int kBooks = Weights::kPairBytes;  // of two phases
  static constexpr int kNorm = kBooks + 2 * Weights::kBookBytes;
  static constexpr int kBarriers = kNorm + kFewRowsWarps * kFewRowsMax * 4;
  static constexpr int kPhases = kBarriers + 8 * (3 * kMostPlaces + 2 * kSumBuffers);
  static constexpr int kFilled = kPhases + kProgramPhases * static_cast<int>(sizeof(ProgramPhase));
  static constexpr int kX = (kFilled + 2 * static_cast<int>(sizeof(ProgramProduct)) + 255) / 256 * 256;
  static_assert(kSumBuffers * kFewRowsWarps * 4 <= 256);

  /// In bytes; x_bytes: a multiple of 256.
  static int size(int x_bytes, int places) { return kX + x_bytes + places * RingPlace<kNested>::kBytes; }
};

/// Starts bringing what a phase needs of the ones after it: arguments, and norms near.
__device__ __forceinline__ void prepare_phases(const ProgramArgs& program, ProgramPhase* phases, int phase) {
  if (phase + 1 >= program.count) return;
  const FewRowsArgs& next = phases[(phase + 1) % kProgramPhases].product;
  const int line = static_cast<int>(threadIdx.x * gridDim.x + blockIdx.x) * 32;
  if (next.norm_weight && line < next.cols)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(next.norm_weight + line) : "memory");
  if (phase + 2 < program.count)
    copy_words(shared_address(phases + (phase + 2) % kProgramPhases), program.phases + phase + 2, sizeof(ProgramPhase),
               threadIdx.x, kFewRowsWarps * 32);
}

/// What the multiplying warps keep from phase to phase.
template <typename T, bool kNested>
struct ProgramWorker {
  using Weights = FewRows4Bit<T, kNested>;
  using Layout = ProgramShared<T, kNested>;
  using Place = RingPlace<kNested>;

  uint8_t* memory;
  ProgramRing ring;
  uint32_t summed, added;  // barriers of the buffers of sums
  FewRowsShared<Weights> shared;
  Weights weights;
  RingReader<kNested> reading;
  uint32_t tiles = 0;  // so far

  __device__ __forceinline__ static float2 load_pair(uint32_t address) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address));
    return pair;
  }

  __device__ __forceinline__ float* sums_of(uint32_t tile) const {
    return reinterpret_cast<float*>(memory + Layout::kSums) +
           tile % kSumBuffers * (kFewRowsWarps * 4 * Layout::kSumPitch);
  }

  /// A tile's chunks of this warp. The order of the products is few_rows_kernel's. x: of the lane's first columns.
  __device__ __forceinline__ void multiply_tile(int units, uint32_t x, bool has_x) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    const uint32_t codes = kept(group * Place::kRowBytes + warp * 64 + quad * 8);
    const uint32_t scales = kept(Place::kScales + group * Place::kScaleBytes + warp * 8);
    weights.begin();
    for (int left = units - 2 * warp; left > -2 * warp; left -= Place::kUnits) {
      wait_patiently(ring.full + 8 * reading.place, reading.parity);
      if (left > 0) {
        const uint32_t at = reading.address + codes, scales_at = reading.address + scales;
        weights.template accumulate<8 * Place::kRowBytes>(at, at + 32, x, has_x, load_pair(scales_at),
                                                          load_pair(scales_at + 8 * Place::kScaleBytes));
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(ring.empty + 8 * reading.place);
      reading.advance(ring);
      x += Place::kColumns * static_cast<int>(sizeof(T));
    }
  }

  __device__ __forceinline__ void put_sums() const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t buffer = 8 * (tiles % kSumBuffers), uses = tiles / kSumBuffers;
    if (uses > 0) wait_patiently(added + buffer, (uses - 1) & 1);
    float* own = sums_of(tiles) + warp * 4 * Layout::kSumPitch + lane;
#pragma unroll
    for (int i = 0; i < 4; ++i) own[i * Layout::kSumPitch] = weights.sum(i);
    __syncwarp();
    if (lane == 0) barrier_arrive(summed + buffer);
  }

  /// Adds the sums of the program's `number`th tile if it is this warp's turn.
  __device__ __forceinline__ void add_sums(const FewRowsArgs& args, uint32_t number, int tile) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp / 4 != static_cast<int>(number % 4)) return;
    const uint32_t buffer = 8 * (number % kSumBuffers);
    wait_patiently(summed + buffer, number / kSumBuffers & 1);
    finish_tile<Layout::kSumPitch>(args, weights, shared, sums_of(number), tile, 0, warp % 4, lane);
    __syncwarp();
    if (lane == 0) barrier_arrive(added + buffer);
  }

  /// The tiles of a phase. A tile's sums are added while the next one is multiplied.
  __device__ __forceinline__ void multiply_phase(const ProgramProduct& args) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, count = args.jobs.tiles, step = gridDim.x;
    const int units = args.cols >> 6, x_row = min(lane / 4, args.m - 1);
    const bool has_x = lane / 4 < args.m;
    const uint32_t x = shared_address(shared.x + x_row * args.x_stride + warp * Weights::kChunk + lane % 4 * 16);
    const int first = args.first_tile();
    int tile = first;
    for (bool is_first = true; tile < count; tile += step, is_first = false) {
      multiply_tile(units, x, has_x);
      put_sums();
      if (!is_first) add_sums(args, tiles - 1, tile - step);
      ++tiles;
    }
    if (tile > first) add_sums(args, tiles - 1, tile - step);
  }
};

/// kDim, kHeads: of every phase's attention; 0 if there is none.
template <typename T, bool kNested, int kDim, int kHeads>
__global__ void __launch_bounds__(kProgramThreads, 1) program_kernel(const __grid_constant__ ProgramArgs program) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Weights = FewRows4Bit<T, kNested>;
  using Layout = ProgramShared<T, kNested>;
  extern __shared__ __align__(128) uint8_t memory[];
  if (shared_address(memory) != kFewRowsShared) __trap();
  const uint32_t barriers = kFewRowsShared + Layout::kBarriers;
  const uint32_t summed = barriers + 24 * kMostPlaces;
  uint8_t* places = memory + Layout::kX + program.x_bytes;
  const ProgramRing ring{shared_address(places),
                         barriers,
                         barriers + 8 * kMostPlaces,
                         barriers + 16 * kMostPlaces,
                         kFewRowsShared + Layout::kBooks,
                         program.places,
                         program.window};
  if (threadIdx.x == 0) {
    for (int i = 0; i < program.places; ++i) {
      barrier_init(ring.raw + 8 * i, 33);  // each lane's copies, and what it stored
      barrier_init(ring.full + 8 * i, 2);  // the bytes of codes, and decoded scales
      barrier_init(ring.empty + 8 * i, kFewRowsWarps);
    }
    for (int i = 0; i < kSumBuffers; ++i) {
      barrier_init(summed + 8 * i, kFewRowsWarps);
      barrier_init(summed + 8 * (kSumBuffers + i), 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (warp == kFewRowsWarps)
    return RingFiller<Weights, kNested>(ring).run(program.phases, program.count,
                                                  reinterpret_cast<ProgramProduct*>(memory + Layout::kFilled));
  if (warp > kFewRowsWarps)
    return decode_scales<kNested>(ring, warp - kFewRowsWarps - 1, count_places<kNested>(program.phases, program.count));

  auto* phases = reinterpret_cast<ProgramPhase*>(memory + Layout::kPhases);
  const auto phase_of = [&](int phase) -> const ProgramPhase& { return phases[phase % kProgramPhases]; };
  ProgramWorker<T, kNested> worker{memory, ring, summed, summed + 8 * kSumBuffers, {}, Weights(threadIdx.x % 32)};
  worker.shared.table = memory;
  worker.shared.ring = places;
  worker.shared.sums = reinterpret_cast<float*>(memory + Layout::kNorm);
  worker.shared.x = reinterpret_cast<T*>(memory + Layout::kX);
  Weights& weights = worker.weights;

  copy_words(shared_address(phases), program.phases, min(program.count, 2) * static_cast<int>(sizeof(ProgramPhase)),
             threadIdx.x, kFewRowsWarps * 32);
  commit_copies();
  wait_copies<0>();
  sync_few_rows();
  Weights::fill_pairs(phase_of(0).product, worker.shared);
  unsigned arrivals = 0;  // that the next wait is for
  for (int phase = 0; phase < program.count; ++phase) {
    // Until the wait, only what no phase writes. Attention reads what it may, and waits itself.
    const ProgramProduct& args = phase_of(phase).product;
    prepare_phases(program, phases, phase);
    commit_copies();
    if constexpr (kDim > 0)
      if (const ProgramAttention& attention = phase_of(phase).attention; attention.dim > 0) {
        attend<kDim, kHeads>(attention, memory + Layout::kX, program.groups, program.barrier, arrivals);
        sync_few_rows();
        if (threadIdx.x == 0) arrive_at(program.barrier);
        arrivals += gridDim.x;
      }
    weights.load_norm(args);
    if (threadIdx.x == 0) wait_at(program.barrier, arrivals);
    sync_few_rows();
    weights.prepare(args, worker.shared, (args.cols + Weights::kChunk - 1) / Weights::kChunk * Weights::kChunk);
    sync_few_rows();
    worker.multiply_phase(args);
    wait_copies<0>();
    sync_few_rows();
    if (threadIdx.x == 0 && phase + 1 < program.count) arrive_at(program.barrier);
    arrivals += gridDim.x;
  }
  if (threadIdx.x == 0) leave(program.barrier);
#endif
}

}  // namespace nibble::kernels::cuda
