// matmul_dense: fp32, bf16 or fp16 weights.
#include "kernels/cpu/isa/entries.h"
#include "kernels/cpu/isa/panel_gemm.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

[[maybe_unused]] NIBBLE_INLINE void convert(float value, Rounding rounding, float* out) {
  if (rounding == Rounding::bf16) value = to_float(to_bf16(value));
  if (rounding == Rounding::f16) value = to_float(to_f16(value));
  *out = value;
}
[[maybe_unused]] NIBBLE_INLINE void convert(float value, Rounding, uint16_t* out) { *out = to_bf16(value).bits; }

template <class StepT>
struct DenseSource {
  using Step = StepT;
  using Element = typename Step::Element;
  const MatmulDenseJob* jobs;
  int64_t cols;
  Rounding rounding;

  int64_t rows(int64_t job) const { return jobs[job].rows; }

  void fill(int64_t job, int64_t row, int64_t begin, int64_t count, Element* out) const {
    const auto& j = jobs[job];
    const int64_t at = row * cols + begin;
    if (j.dtype == DType::bf16) {
      const auto* w = static_cast<const bf16_t*>(j.w) + at;
      for (int64_t i = 0; i < count; ++i) convert(to_float(w[i]), rounding, out + i);
    } else if (j.dtype == DType::f16) {
      const auto* w = static_cast<const f16_t*>(j.w) + at;
      for (int64_t i = 0; i < count; ++i) convert(to_float(w[i]), rounding, out + i);
    } else {
      const auto* w = static_cast<const float*>(j.w) + at;
      for (int64_t i = 0; i < count; ++i) convert(w[i], rounding, out + i);
    }
  }

  void finish(int64_t job, int64_t row, int64_t count, int64_t first_x, int64_t m, const float* c) const {
    store_float(jobs[job].out, row, count, first_x, m, c);
  }
};

}  // namespace

void matmul_dense(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count) {
#if defined(NIBBLE_AVX512)
  if (input.compute == DType::bf16)
    return run_float_gemm(context, input, Rounding::bf16, DenseSource<StepBf16>{jobs, input.cols, Rounding::bf16},
                          count);
#endif
  const Rounding rounding = input.compute == DType::bf16  ? Rounding::bf16
                            : input.compute == DType::f16 ? Rounding::f16
                                                          : Rounding::none;
  // fp16 rounds x alone: its products are made in fp32.
  const Rounding w_rounding = rounding == Rounding::bf16 ? Rounding::bf16 : Rounding::none;
  run_float_gemm(context, input, rounding, DenseSource<StepF32>{jobs, input.cols, w_rounding}, count);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
