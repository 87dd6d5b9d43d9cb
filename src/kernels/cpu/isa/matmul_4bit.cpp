// matmul_4bit: NF4, FP4 or any other code book of 16 values, blocks of 32 to 4096, plain or nested absmax.
#include "kernels/cpu/isa/absmax.h"
#include "kernels/cpu/isa/decode_4bit.h"
#include "kernels/cpu/isa/entries.h"
#include "kernels/cpu/isa/gemv_4bit.h"
#include "kernels/cpu/isa/panel_gemm.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

template <class Step>
struct Source4Bit : FloatSource<Step, Matmul4BitJob> {
  using Element = typename Step::Element;
  using FloatSource<Step, Matmul4BitJob>::jobs;
  using FloatSource<Step, Matmul4BitJob>::cols;
  using FloatSource<Step, Matmul4BitJob>::rounding;

  void fill(int64_t job, int64_t row, int64_t begin, int64_t count, Element* out) const {
    const auto& j = jobs[job];
    const bool is_power = (j.block & (j.block - 1)) == 0;
    const int shift = __builtin_ctzll(static_cast<uint64_t>(j.block));
    int64_t at = row * cols + begin;
    const int64_t end = at + count;
    while (at < end) {
      const int64_t block = is_power ? at >> shift : at / j.block;
      const int64_t stop = smaller(end, (block + 1) * j.block);
      decode_run(j.packed, at, stop - at, j.code_book, absmax_of(j.absmax, block), rounding, out);
      out += stop - at;
      at = stop;
    }
  }

  NIBBLE_INLINE void prefetch(int64_t job, int64_t row, int64_t begin, int64_t count) const {
    prefetch_bytes(jobs[job].packed + (row * cols + begin) / 2, count / 2);
  }
};

}  // namespace

void matmul_4bit(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
#if defined(NIBBLE_HAS_CHUNKS)
  // Each row of x by itself, in the same order for any number of them: what batch-invariant calls ask for.
  if ((input.m <= kGemvRows || input.batch_invariant) && has_whole_chunks(jobs, count, input.cols)) {
    const Rounding rounding = rounding_of(input.compute);
    if (rounding == Rounding::bf16) return run_gemv_4bit<ChunkBf16>(context, input, rounding, jobs, count);
    return run_gemv_4bit<ChunkF32>(context, input, rounding, jobs, count);
  }
#endif
  run_panels<Source4Bit>(context, input, jobs, count);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
