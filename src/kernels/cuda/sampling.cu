// penalize; top_candidates: blocks pick the best of their slice of a row, and the last of them picks among those.
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kParts = 32;       // of a row
constexpr int kSliceItems = 24;  // of a thread: kParts * kThreads of them cover kMostCandidateColumns
constexpr int kFinalItems = 32;  // kThreads of them cover kParts * kMostCandidates
static_assert(int64_t{kParts} * kThreads * kSliceItems >= kMostCandidateColumns);
static_assert(kThreads * kFinalItems >= kParts * kMostCandidates && kThreads >= kMostCandidates);

/// What a part leaves: its candidates (cleared ids behind them), its largest value and its mass relative to that.
struct Part {
  float maximum;
  float mass;
};

/// Rises with x; 0 for what is no candidate. Both zeros are one.
__device__ __forceinline__ uint32_t key_of(float x) {
  if (!(x > -INFINITY)) return 0;
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

/// Adds over the block again and again with one barrier each: three counters take turns.
struct Counter {
  int* cells;  // three zeros in shared memory
  int turn = 0;
  __device__ int sum(int value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullMask, value, offset);
    if (threadIdx.x % 32 == 0 && value) atomicAdd(cells + turn, value);
    __syncthreads();
    const int total = cells[turn];
    turn = (turn + 1) % 3;
    // The cell after the next one was read before the barrier that has just passed.
    if (threadIdx.x == 0) cells[(turn + 1) % 3] = 0;
    return total;
  }
};

/// The largest t in [low, high) with count(t) >= wanted, or one with count(t) == wanted; count(low) >= wanted.
template <typename Count>
__device__ uint32_t largest_with(uint32_t low, uint32_t high, int wanted, const Count& count) {
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const int found = count(middle);
    if (found >= wanted) low = middle;
    if (found == wanted) break;
    if (found < wanted) high = middle;
  }
  return low;
}

/// Calls take(item) for the `wanted` best of the block's items (`count` a thread; keys, and their columns by
/// column(item)), or for all with a key if they are fewer. Keys are below `high`. Returns how many.
template <int kItems, typename Column, typename Take>
__device__ int select(const uint32_t (&keys)[kItems], int count, int wanted, uint32_t high, Counter& counter,
                      const Column& column, const Take& take) {
  const auto count_keys = [&](uint32_t least) {
    int found = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (i < count) found += keys[i] >= least;
    return counter.sum(found);
  };
  const int all = count_keys(1);
  wanted = min(wanted, all);
  if (wanted == 0) return 0;
  const uint32_t least = all == wanted ? 1 : largest_with(1, high, wanted, count_keys);
  // Of the columns whose key is `least` only the lowest may be in: those below `end`.
  uint32_t end = 0xffffffffu;
  if (all != wanted && count_keys(least) > wanted) {
    const int above = count_keys(least + 1);
    const auto count_equal = [&](uint32_t from_end) {  // columns below ~from_end
      int found = 0;
#pragma unroll
      for (int i = 0; i < kItems; ++i)
        if (i < count && keys[i] == least) found += static_cast<uint32_t>(column(i)) < ~from_end;
      return counter.sum(found);
    };
    // As few columns as reach the number: the largest from_end.
    end = ~largest_with(0, 0xffffffffu, wanted - above, count_equal);
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i)
    if (i < count && (keys[i] > least || (keys[i] == least && static_cast<uint32_t>(column(i)) < end))) take(i);
  return wanted;
}

__device__ float block_max(float x, float* shared) {
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_max(shared[threadIdx.x % kWarps]);
}

__device__ double block_sum(double x, double* shared) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullMask, x, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared[w];
  return sum;
}

struct Shared {
  double sums[kWarps];
  unsigned long long best[kMostCandidates];  // key and inverted column
  float maxima[kWarps];
  int counts[3];
  int taken;
  bool is_last;
};

/// A block's slice of a row: its best columns into `columns` (args.count, -1 behind them), its maximum and mass.
__device__ void pick_slice(const TopCandidatesArgs& args, const float* x, int64_t width, int* columns, Part* part,
                           Shared& shared, Counter& counter) {
  const int64_t begin = blockIdx.x * width, end = min(begin + width, args.cols);
  uint32_t keys[kSliceItems];
  float values[kSliceItems];
  float maximum = -INFINITY;
  const int items = static_cast<int>((width + kThreads - 1) / kThreads);
#pragma unroll
  for (int i = 0; i < kSliceItems; ++i) {
    const int64_t c = begin + i * kThreads + threadIdx.x;
    values[i] = i < items && c < end ? x[c] : -INFINITY;
    keys[i] = key_of(values[i]);
    maximum = fmaxf(maximum, values[i]);
  }
  maximum = block_max(maximum, shared.maxima);
  const float shift = maximum / args.temperature;
  double mass = 0;
#pragma unroll
  for (int i = 0; i < kSliceItems; ++i)
    if (keys[i]) mass += static_cast<double>(expf(values[i] / args.temperature - shift));
  mass = block_sum(mass, shared.sums);
  const auto column = [&](int i) { return static_cast<int>(begin) + i * kThreads + static_cast<int>(threadIdx.x); };
  const int found = select(keys, items, static_cast<int>(args.count), key_of(maximum) + 1, counter, column,
                           [&](int i) { columns[atomicAdd(&shared.taken, 1)] = column(i); });
  for (int i = found + static_cast<int>(threadIdx.x); i < args.count; i += kThreads) columns[i] = -1;
  if (threadIdx.x == 0) *part = {maximum, static_cast<float>(mass)};
}

/// The best of what the parts of a row found, in order; its mass.
__device__ void pick_row(const TopCandidatesArgs& args, int64_t row, const volatile int* columns,
                         const volatile Part* parts, Shared& shared, Counter& counter) {
  const float* x = args.x + row * args.cols;
  const int count = static_cast<int>(args.count);
  float maximum = -INFINITY;
  for (int p = 0; p < kParts; ++p) maximum = fmaxf(maximum, parts[p].maximum);
  double mass = 0;
  if (threadIdx.x < kParts && parts[threadIdx.x].mass > 0)
    mass = parts[threadIdx.x].mass * exp(static_cast<double>(parts[threadIdx.x].maximum / args.temperature) -
                                         static_cast<double>(maximum / args.temperature));
  mass = block_sum(mass, shared.sums);
  if (threadIdx.x == 0) {
    args.masses[row] = static_cast<float>(mass);
    shared.taken = 0;
  }
  uint32_t keys[kFinalItems];
  const int all = kParts * count, items = (all + kThreads - 1) / kThreads;
  const auto column = [&](int i) { return columns[i * kThreads + threadIdx.x]; };
#pragma unroll
  for (int i = 0; i < kFinalItems; ++i) {
    keys[i] = 0;
    if (i >= items || i * kThreads + static_cast<int>(threadIdx.x) >= all) continue;
    const int c = column(i);
    if (c >= 0) keys[i] = key_of(x[c]);
  }
  const int found = select(keys, items, count, key_of(maximum) + 1, counter, column, [&](int i) {
    shared.best[atomicAdd(&shared.taken, 1)] =
        static_cast<unsigned long long>(keys[i]) << 32 | ~static_cast<uint32_t>(column(i));
  });
  __syncthreads();
  const int own = static_cast<int>(threadIdx.x);
  if (own < found) {
    int rank = 0;
    for (int i = 0; i < found; ++i) rank += shared.best[i] > shared.best[own];
    const int c = static_cast<int>(~static_cast<uint32_t>(shared.best[own]));
    args.columns[row * count + rank] = c;
    args.values[row * count + rank] = x[c];
  } else if (own < count) {
    args.columns[row * count + own] = -1;
    args.values[row * count + own] = -INFINITY;
  }
}

__global__ void __launch_bounds__(kThreads)
    top_candidates_kernel(TopCandidatesArgs args, int64_t width, Part* parts, int* columns, unsigned* counters) {
  __shared__ Shared shared;
  const int64_t row = blockIdx.y;
  if (threadIdx.x < 3) shared.counts[threadIdx.x] = 0;
  if (threadIdx.x == 0) shared.taken = 0;
  __syncthreads();
  Counter counter{shared.counts};
  parts += row * kParts;
  columns += row * kParts * args.count;
  pick_slice(args, args.x + row * args.cols, width, columns + blockIdx.x * args.count, parts + blockIdx.x, shared,
             counter);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.is_last = atomicAdd(counters + row, 1u) == kParts - 1;
    if (shared.is_last) counters[row] = 0;
    __threadfence();
  }
  __syncthreads();
  if (shared.is_last) pick_row(args, row, columns, parts, shared, counter);
}

__global__ void penalize_kernel(PenalizeArgs args) {
  const int64_t row = blockIdx.x;
  for (int i = args.offsets[row] + static_cast<int>(threadIdx.x); i < args.offsets[row + 1]; i += kThreads) {
    float& x = args.x[row * args.cols + args.tokens[i]];
    x = x < 0 ? x * args.penalty : x / args.penalty;
  }
}

}  // namespace

void penalize(const Context& context, const PenalizeArgs& args) {
  if (args.rows > 0)
    penalize_kernel<<<static_cast<unsigned>(args.rows), kThreads, 0, stream_of(context.stream)>>>(args);
}

void top_candidates(const Context& context, const TopCandidatesArgs& all) {
  constexpr int64_t kRows = 1024;  // of a launch
  for (int64_t row = 0; row < all.rows; row += kRows) {
    TopCandidatesArgs args = all;
    args.rows = all.rows - row < kRows ? all.rows - row : kRows;
    args.x += row * all.cols;
    args.columns += row * all.count;
    args.values += row * all.count;
    args.masses += row;
    const int64_t part_bytes = args.rows * kParts * static_cast<int64_t>(sizeof(Part));
    const int64_t column_bytes = args.rows * kParts * args.count * static_cast<int64_t>(sizeof(int));
    auto* memory = static_cast<char*>(context.scratch->reserve(part_bytes + column_bytes));
    top_candidates_kernel<<<dim3(kParts, static_cast<unsigned>(args.rows)), kThreads, 0, stream_of(context.stream)>>>(
        args, (all.cols + kParts - 1) / kParts, reinterpret_cast<Part*>(memory),
        reinterpret_cast<int*>(memory + part_bytes), context.counters);
  }
}

}  // namespace nibble::kernels::cuda
