// matmul_4bit: NF4, FP4 or any other code book of 16 values, blocks of 32 to 4096, plain or nested absmax.
#include "kernels/cpu/isa/entries.h"
#include "kernels/cpu/isa/panel_gemm.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

NIBBLE_INLINE float absmax_of(const Absmax& absmax, int64_t block) {
  if (absmax.values) return absmax.values[block];
  const float product =
      absmax.nested_code_book[absmax.codes[block]] * absmax.nested_absmax[block / quant::kNestedBlock];
  return product + absmax.offset;
}

[[maybe_unused]] NIBBLE_INLINE void convert(float value, Rounding rounding, float* out) {
  *out = rounding == Rounding::bf16 ? to_float(to_bf16(value)) : value;
}
[[maybe_unused]] NIBBLE_INLINE void convert(float value, Rounding, uint16_t* out) { *out = to_bf16(value).bits; }

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
    int64_t at = row * cols + begin;
    const int64_t end = at + count;
    while (at < end) {
      const int64_t block = at / j.block;
      const int64_t stop = smaller(end, (block + 1) * j.block);
      const float scale = absmax_of(j.absmax, block);
      Element values[16];
      for (int c = 0; c < 16; ++c) convert(j.code_book[c] * scale, rounding, &values[c]);
      for (; at < stop; ++at) *out++ = values[(j.packed[at >> 1] >> (at & 1 ? 0 : 4)) & 15];
    }
  }

  void finish(int64_t job, int64_t row, int64_t count, int64_t first_x, int64_t m, const float* c) const {
    store_float(jobs[job].out, row, count, first_x, m, c);
  }
};

}  // namespace

void matmul_4bit(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
#if defined(NIBBLE_AVX512)
  if (input.compute == DType::bf16)
    return run_float_gemm(context, input, Rounding::bf16, Source4Bit<StepBf16>{jobs, input.cols, Rounding::bf16},
                          count);
#endif
  const Rounding rounding = input.compute == DType::bf16  ? Rounding::bf16
                            : input.compute == DType::f16 ? Rounding::f16
                                                          : Rounding::none;
  const Rounding w_rounding = rounding == Rounding::bf16 ? Rounding::bf16 : Rounding::none;
  run_float_gemm(context, input, rounding, Source4Bit<StepF32>{jobs, input.cols, w_rounding}, count);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
