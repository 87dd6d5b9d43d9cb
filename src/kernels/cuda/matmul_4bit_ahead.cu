// 4-bit weights by very many rows of x: decoded beside the products, in the same launch.
#include "kernels/cuda/device/ahead_4bit.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/turns_4bit.cuh"
#include "kernels/cuda/matmul_4bit.h"
#include "kernels/cuda/tensor_map.h"

namespace nibble::kernels::cuda {
namespace {

/// Room for decoded weights that wait for their products, and the most of it: two groups of panels are a must.
constexpr int64_t kRingBytes = int64_t{76} << 20, kMostRingBytes = int64_t{80} << 20;

/// Tiles for each pair: the fewest of turns_4bit.cuh, and from which on some of ahead_4bit.cuh may be cut.
constexpr int kLeastTurns = 4, kLeastCutRounds = 6;

int64_t ring_bytes(const AheadArgs& args) {
  return int64_t{std::min(args.group * args.slots, args.jobs.tiles)} * args.panel_bytes;
}

/// y in bf16 of columns by eight, which the copy engine stores; what y held would have to be waited for.
bool suits(const Matmul4BitJob& job) {
  return job.out.y_dtype == DType::bf16 && !job.out.accumulate && job.out.y_stride % 8 == 0 &&
         is_aligned(job.out.y, 16) && job.rows % 8 == 0;
}

/// Long enough for the start of the launch not to count: three tiles for a pair, or a long one. A tile for each pair
/// at least, so that each has a share of what is cut.
bool is_long(const AheadArgs& args, int pairs) { return args.tiles >= (args.chunks >= 128 ? pairs : 3 * pairs); }

/// Sizes, but for how tiles are cut. False if they are too many.
bool measure(const MatmulInput& input, AheadArgs& args, int pairs) {
  args.m = static_cast<int>(input.m);
  args.cols = static_cast<int>(input.cols);
  args.chunks = args.cols / 64;
  args.quads = (args.cols + 255) / 256;
  args.column_tiles = (args.m + 255) / 256;
  const int64_t tiles = int64_t{args.jobs.tiles} * args.column_tiles;
  if (pairs == 0 || args.quads >= kCounters || tiles * (args.chunks + 8) > 0x7fffffff) return false;
  args.tiles = static_cast<int>(tiles);
  return true;
}

/// Whether the tiles of turns_4bit.cuh, which are not cut, keep all pairs busy but for a tenth of their time, and the
/// start of the launch is a small part of it.
bool takes_turns(const AheadArgs& args, int pairs) {
  int64_t rows = 0;
  for (int j = 0; j < args.jobs.count; ++j) rows += args.jobs.jobs[j].rows;
  const int64_t rounds = (args.tiles + pairs - 1) / pairs;
  return rounds >= kLeastTurns && 10 * rows * args.m >= 9 * rounds * pairs * TurnsTile::kRows * 256;
}

/// Of ahead_4bit.cuh: which tiles are whole. False if the call does not suit.
bool cut_tiles(AheadArgs& args, int pairs) {
  if (!is_long(args, pairs)) return false;
  // Cutting tiles costs a fifth of a tile or so: only where more than that would be waited for the last ones, and of
  // few rounds even that is too much.
  const int rounds = args.tiles / pairs, rest = args.tiles % pairs;
  const bool is_cut = rest > 0 && 10 * (pairs - rest) > 3 * pairs;
  if (is_cut && rounds < kLeastCutRounds) return false;
  args.whole_tiles = is_cut ? std::max(rounds - 1, 0) * pairs : args.tiles;
  return true;
}

/// The ring of panels; false if it takes too much room.
bool plan_ring(AheadArgs& args, int tile_rows, int pairs) {
  args.panel_bytes = args.chunks * tile_rows * 128;
  args.group = std::min((pairs + args.column_tiles - 1) / args.column_tiles, args.jobs.tiles);
  args.groups = (args.jobs.tiles + args.group - 1) / args.group;
  const int64_t group_bytes = int64_t{args.group} * args.panel_bytes;
  args.slots = static_cast<int>(std::min<int64_t>(args.groups, std::max<int64_t>(2, kRingBytes / group_bytes)));
  return ring_bytes(args) <= kMostRingBytes;
}

/// Lays out the counts; false if they are too many.
bool place_counts(const Context& context, AheadArgs& args, int pairs) {
  args.left = context.counters;
  args.gone = args.left + int64_t{pairs} * 2 * 8;
  args.read = args.gone + 1;
  args.ready = args.read + args.groups;
  return args.ready - context.counters + int64_t{args.jobs.tiles} * args.quads <= kCounters;
}

/// All blocks at a time or none, which is what they need to wait for each other. False if they have no room.
template <typename Tile, typename Kernel>
bool launch(const Context& context, Kernel kernel, const AheadArgs& args, int pairs) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kBytes);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = 2;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(2 * pairs));
  config.blockDim = dim3(kAheadThreads);
  config.dynamicSmemBytes = Tile::kBytes;
  config.stream = stream_of(context.stream);
  config.attrs = attributes;
  config.numAttrs = 2;
  if (cudaLaunchKernelEx(&config, kernel, args) == cudaSuccess) return true;
  cudaGetLastError();  // the caller takes another way
  return false;
}

bool describe_results(const Matmul4BitJob* jobs, int64_t count, bool is_turns, AheadArgs& args) {
  for (int64_t j = 0; j < count; ++j) {
    const Matmul4BitJob& job = jobs[j];
    const int64_t stride = job.out.y_stride;
    if (!(is_turns ? describe_tiles(args.out[j], job.out.y, args.m, job.rows, stride, 64, TurnsTile::kBoxColumns)
                   : describe_rows(args.out[j], job.out.y, args.m, job.rows * 2, stride * 2, 64)))
      return false;
  }
  return true;
}

}  // namespace

template <typename T>
bool multiply_ahead(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  const int pairs = context.multiprocessors / 2;
  if (!std::all_of(jobs, jobs + count, suits)) return false;
  AheadArgs args{};
  args.jobs = with_weights(jobs, count, TurnsTile::kRows);
  const bool is_turns = measure(input, args, pairs) && takes_turns(args, pairs);
  if (!is_turns) {
    args.jobs = with_weights(jobs, count, AheadTile::kRows);
    if (!measure(input, args, pairs) || !cut_tiles(args, pairs)) return false;
  }
  if (!plan_ring(args, is_turns ? TurnsTile::kRows : AheadTile::kRows, pairs) || !place_counts(context, args, pairs) ||
      !describe_results(jobs, count, is_turns, args))
    return false;
  std::copy_n(jobs[0].code_book, 16, args.book);
  args.is_nested = is_nested(jobs[0]);

  const int64_t x_bytes = is_rounded<T>(input) ? 0 : padded_to_256(input.m * input.cols * 2);
  const int64_t partials = !is_turns && args.whole_tiles < args.tiles ? int64_t{pairs} * 2 * 128 * 256 * 4 : 0;
  auto* scratch = static_cast<uint8_t*>(context.scratch->reserve(x_bytes + partials + ring_bytes(args)));
  args.partials = reinterpret_cast<float*>(scratch + x_bytes);
  args.panels = scratch + x_bytes + partials;
  if (!describe_matrix(args.x, x_bytes > 0 ? scratch : input.x, input.m, input.cols * 2, 128)) return false;
  if (x_bytes > 0) round_x(context, input, reinterpret_cast<T*>(scratch));
  return is_turns ? launch<TurnsTile>(context, turns_4bit_kernel<T>, args, pairs)
                  : launch<AheadTile>(context, ahead_4bit_kernel<T>, args, pairs);
}

template bool multiply_ahead<__nv_bfloat16>(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs,
                                            int64_t count);

}  // namespace nibble::kernels::cuda
