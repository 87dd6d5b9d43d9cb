// matmul_4bit: NF4, FP4 or any other code book of 16 values, blocks of 32 to 4096, plain or nested absmax.
#include "kernels/cpu/isa/absmax.h"
#include "kernels/cpu/isa/decode_4bit.h"
#include "kernels/cpu/isa/entries.h"
#include "kernels/cpu/isa/gemv_4bit.h"
#include "kernels/cpu/isa/panel_gemm.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

template <class StepT>
struct Source4Bit {
  using Step = StepT;
  using Element = typename Step::Element;
  const Matmul4BitJob* jobs;
  int64_t cols;
  Rounding rounding;

  int64_t rows(int64_t job) const { return jobs[job].rows; }

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

  void finish(int64_t job, int64_t row, int64_t count, int64_t first_x, int64_t m, const float* c) const {
    store_float(jobs[job].out, row, count, first_x, m, c);
  }
};

}  // namespace

void matmul_4bit(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  const Rounding rounding = input.compute == DType::bf16  ? Rounding::bf16
                            : input.compute == DType::f16 ? Rounding::f16
                                                          : Rounding::none;
#if defined(NIBBLE_HAS_CHUNKS)
  if (input.m <= kGemvRows && !input.batch_invariant && has_whole_chunks(jobs, count, input.cols)) {
    if (rounding == Rounding::bf16) return run_gemv_4bit<ChunkBf16>(context, input, rounding, jobs, count);
    return run_gemv_4bit<ChunkF32>(context, input, rounding, jobs, count);
  }
#endif
#if defined(NIBBLE_AVX512)
  if (rounding == Rounding::bf16)
    return run_float_gemm(context, input, rounding, Source4Bit<StepBf16>{jobs, input.cols, rounding}, count);
#endif
  // fp16 rounds x alone: its products are made in fp32.
  const Rounding w_rounding = rounding == Rounding::bf16 ? Rounding::bf16 : Rounding::none;
  run_float_gemm(context, input, rounding, Source4Bit<StepF32>{jobs, input.cols, w_rounding}, count);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
