// The ring of weights of a decode program: one warp fills it with codes and absmax, phase by phase and without a look
// at what the other warps have come to, others decode the absmax, and those that multiply only free places.
#pragma once

#include "kernels/cuda/device/program_attention.cuh"
#include "kernels/cuda/device/weights_4bit.cuh"

namespace nibble::kernels::cuda {

/// Its tiles go to the blocks in turn, from `first_block` on: where the phase before left off.
struct ProgramProduct : FewRowsArgs {
  int first_block;

  __device__ __forceinline__ int first_tile() const {
    const int tile = static_cast<int>(blockIdx.x) - first_block;
    return tile < 0 ? tile + static_cast<int>(gridDim.x) : tile;
  }
};

/// A launch's worth of products, and what came before it if that was attention. What a phase reads besides weights,
/// phases before it may have written.
struct ProgramPhase {
  ProgramProduct product;
  ProgramAttention attention;
};

/// One place of the ring: up to 2048 columns of a tile's rows, a chunk of 128 for each warp.
template <bool kNested>
struct RingPlace {
  static constexpr int kColumns = 2048;
  static constexpr int kUnits = kColumns / 64;          // scales of a row, at most
  static constexpr int kRowBytes = kColumns / 2 + 32;   // eight rows are read without conflicts
  static constexpr int kRecords = 16 * kRowBytes;       // absmax as it is stored, of each row
  static constexpr int kWords = kNested ? 10 : kUnits;  // of a row: four codes each, from any of them on; or a value
  static constexpr int kNestedAt = kWords;              // two nested absmax, then what RingRow says
  static constexpr int kRowAt = kWords + 2;
  static constexpr int kRecordBytes = (kWords + 7) * 4;  // an odd number of words: rows lie in different banks
  static constexpr int kScales = (kRecords + 16 * kRecordBytes + 15) / 16 * 16;  // decoded
  static constexpr int kScaleBytes = kUnits * 4 + 16;                            // of a row
  static constexpr int kBytes = kScales + 16 * kScaleBytes;
};

/// What decoding the scales of a row takes, as four words.
struct RingRow {
  uint32_t unit;   // the first of the place, of all in the weight
  uint32_t shape;  // log2 of units in a block, and 256 times the units that are there
  uint32_t book;
  float offset;
};

struct ProgramRing {
  uint32_t places;            // in shared memory, as all addresses here
  uint32_t raw, full, empty;  // barriers: scales may be decoded, all is there, all was read
  uint32_t books;             // nested code books of two phases
  int count;
  int window;  // places under way at a time: more would make everything else wait in the same queues
};

/// A place of the ring and how often the ring has gone round.
struct RingPosition {
  int place = 0;
  uint32_t round = 0;
  __device__ __forceinline__ void advance(int count) {
    if (++place < count) return;
    place = 0;
    ++round;
  }
};

/// The same for those who read.
template <bool kNested>
struct RingReader {
  uint32_t address;
  int place = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(const ProgramRing& ring) {
    address += RingPlace<kNested>::kBytes;
    if (++place < ring.count) return;
    place = 0;
    parity ^= 1;
    address = ring.places;
  }
};

__device__ __forceinline__ bool has_passed(uint32_t barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(passed)
               : "r"(barrier), "r"(parity)
               : "memory");
  return passed != 0;
}

__device__ __forceinline__ void wait_patiently(uint32_t barrier, uint32_t parity) {
  PatientWait wait;
  while (!has_passed(barrier, parity)) wait.poll();
}

__device__ __forceinline__ float load_float(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}
__device__ __forceinline__ uint32_t load_word(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}
__device__ __forceinline__ void store_word(uint32_t address, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

/// Starts copying words of device memory to shared memory, by `threads` threads.
__device__ __forceinline__ void copy_words(uint32_t to, const void* from, int size_bytes, int thread, int threads) {
  for (int at = 4 * thread; at < size_bytes; at += 4 * threads)
    copy_async_4(to + at, static_cast<const uint8_t*>(from) + at, 4);
}

/// What the filling warp does: it copies codes, and absmax as it is stored.
template <typename Weights, bool kNested>
class RingFiller {
 public:
  __device__ __forceinline__ explicit RingFiller(const ProgramRing& ring)
      : ring_(ring), lane_(threadIdx.x % 32), row_(lane_ % 16), side_(lane_ / 16) {}

  /// What it needs of two phases at a time lies in `args`.
  __device__ __forceinline__ void run(const ProgramPhase* phases, int count, ProgramProduct* args) {
    copy_words(shared_address(args), &phases->product, sizeof(ProgramProduct), lane_, 32);
    int before = 0;  // places that were filled when the phase before this one began
    for (int phase = 0; phase < count; ++phase) {
      commit_copies();
      wait_copies<0>();  // of the arguments: scales are in no group
      __syncwarp();
      const ProgramProduct& product = args[phase % 2];
      if (phase + 1 < count)
        copy_words(shared_address(args + (phase + 1) % 2), &phases[phase + 1].product, sizeof(ProgramProduct), lane_,
                   32);
      const uint32_t books = ring_.books + phase % 2 * Weights::kBookBytes;
      wait_until_full(before);
      before = filled_;
      if constexpr (kNested)
        for (int j = 0; j < product.jobs.count; ++j)
          copy_words(books + 1024 * j, product.jobs.jobs[j].weight.absmax.nested_code_book, 1024, lane_, 32);
      for (int tile = product.first_tile(); tile < product.jobs.tiles; tile += gridDim.x)
        fill_tile(product, tile, books);
      __syncwarp();
    }
    commit_copies();
    wait_copies<0>();
  }

 private:
  using Place = RingPlace<kNested>;

  __device__ __forceinline__ void wait_until_full(int number) {
    for (; known_ < number; ++known_) {
      wait_patiently(ring_.full + 8 * oldest_.place, oldest_.round & 1);
      oldest_.advance(ring_.count);
    }
  }

  __device__ __forceinline__ void fill_tile(const FewRowsArgs& args, int tile, uint32_t books) {
    const auto at = Weights::row_of(args, tile, row_);
    const DeviceWeight weight = args.jobs.jobs[at.job].weight;
    const int units = args.cols >> 6, shift = weight.block_shift - 6;
    const uint8_t* codes = weight.data + ((int64_t{at.row} * args.cols) >> 1);
    RingRow row{static_cast<uint32_t>(at.row) * static_cast<uint32_t>(units), 0, books + 1024 * at.job,
                weight.absmax.offset};
    for (int unit = 0; unit < units; unit += Place::kUnits) {
      const int here = min(Place::kUnits, units - unit);
      wait_until_full(filled_ + 1 - ring_.window);
      if (next_.round > 0) wait_patiently(ring_.empty + 8 * next_.place, (next_.round - 1) & 1);
      row.shape = shift + 256 * here;
      fill_place(weight.absmax, codes, row, here);
      codes += Place::kColumns / 2;
      row.unit += Place::kUnits;
      next_.advance(ring_.count);
      ++filled_;
    }
  }

  __device__ __forceinline__ void fill_place(const Absmax& absmax, const uint8_t* codes, const RingRow& row, int here) {
    const uint32_t full = ring_.full + 8 * next_.place, raw = ring_.raw + 8 * next_.place;
    const uint32_t place = ring_.places + next_.place * Place::kBytes;
    if (lane_ == 0) barrier_expect(full, static_cast<uint32_t>(16 * 32 * here));
    __syncwarp();
    if (side_ == 0) copy_bulk(place + row_ * Place::kRowBytes, codes, static_cast<uint32_t>(32 * here), full);
    const int shift = row.shape & 255;
    const uint32_t first = row.unit >> shift, last = (row.unit + here - 1) >> shift;
    const uint32_t record = place + Place::kRecords + row_ * Place::kRecordBytes;
#pragma unroll
    for (int j = 0; j < Place::kWords / 2; ++j) {
      const uint32_t word = 2 * j + side_;
      if constexpr (kNested) {
        const uint32_t from = (first & ~3u) + 4 * word;
        if (from <= last) copy_async_4(record + 4 * word, absmax.codes + from, 4);
      } else if (first + word <= last) {
        copy_async_4(record + 4 * word, absmax.values + first + word, 4);
      }
    }
    if constexpr (kNested)
      if (const uint32_t group = (first >> 8) + side_; group <= last >> 8)
        copy_async_4(record + 4 * (Place::kNestedAt + side_), absmax.nested_absmax + group, 4);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(raw) : "memory");
    const uint32_t at = record + 4 * (Place::kRowAt + 2 * side_);
    store_word(at, side_ == 0 ? row.unit : row.book);
    store_word(at + 4, side_ == 0 ? row.shape : __float_as_uint(row.offset));
    __syncwarp();
    if (lane_ == 0) barrier_arrive(raw);
  }

  ProgramRing ring_;
  int lane_, row_, side_;
  RingPosition next_, oldest_;
  int filled_ = 0, known_ = 0;  // places: so far, and those known to be full
};

inline constexpr int kDecoders = 3;  // warps that decode scales, place by place in turn

/// What a decoding warp does: half a row a lane.
template <bool kNested>
__device__ __forceinline__ void decode_scales(const ProgramRing& ring, int decoder, int places) {
  using Place = RingPlace<kNested>;
  const int lane = threadIdx.x % 32, row = lane / 2, begin = lane % 2 * (Place::kUnits / 2);
  RingPosition position;
  for (int number = 0; number < places; ++number, position.advance(ring.count)) {
    if (number % kDecoders != decoder) continue;
    wait_patiently(ring.raw + 8 * position.place, position.round & 1);
    const uint32_t place = ring.places + position.place * Place::kBytes;
    const uint32_t record = place + Place::kRecords + row * Place::kRecordBytes;
    const uint32_t to = place + Place::kScales + row * Place::kScaleBytes + 4 * begin;
    const uint32_t unit = load_word(record + 4 * Place::kRowAt), shape = load_word(record + 4 * Place::kRowAt + 4);
    const uint32_t book = load_word(record + 4 * Place::kRowAt + 8);
    const float offset = load_float(record + 4 * Place::kRowAt + 12);
    const uint32_t shift = shape & 255, first = unit >> shift;
    const int here = static_cast<int>(shape >> 8);
    float nested[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) nested[j] = kNested ? load_float(record + 4 * (Place::kNestedAt + j)) : 0.0f;
    const uint32_t base = kNested ? record - (first & ~3u) : record - 4 * first;
#pragma unroll
    for (int j = 0; j < Place::kUnits / 2; ++j) {
      const uint32_t block = (unit + begin + j) >> shift;
      float scale;
      if constexpr (kNested) {
        uint32_t code;
        asm volatile("ld.shared.u8 %0, [%1];" : "=r"(code) : "r"(base + block));
        scale = nested_value(load_float(book + 4 * code), block >> 8 == first >> 8 ? nested[0] : nested[1], offset);
      } else {
        scale = load_float(base + 4 * block);
      }
      store_word(to + 4 * j, begin + j < here ? __float_as_uint(scale) : 0u);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(ring.full + 8 * position.place);
  }
}

/// Places that this block's tiles take, in every lane.
template <bool kNested>
__device__ __forceinline__ int count_places(const ProgramPhase* phases, int count) {
  int places = 0;
  for (int phase = threadIdx.x % 32; phase < count; phase += 32) {
    const ProgramProduct& args = phases[phase].product;
    const int own = args.jobs.tiles - args.first_tile(), blocks = static_cast<int>(gridDim.x);
    if (own > 0)
      places +=
          (own + blocks - 1) / blocks * ((args.cols + RingPlace<kNested>::kColumns - 1) / RingPlace<kNested>::kColumns);
  }
  return __reduce_add_sync(kFullMask, places);
}

/// A value that the compiler keeps in a register instead of computing it again and again.
template <typename T>
__device__ __forceinline__ T kept(T value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace nibble::kernels::cuda
