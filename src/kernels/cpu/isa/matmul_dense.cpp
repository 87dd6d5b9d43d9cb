// matmul_dense: fp32, bf16 or fp16 weights.
#include "kernels/cpu/isa/entries.h"
#include "kernels/cpu/isa/gemv_dense.h"
#include "kernels/cpu/isa/panel_gemm.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

/// Widens `count` values of type T, a piece at a time, and rounds them.
template <class T, class Element>
void convert_row(const void* w, int64_t at, int64_t count, Rounding rounding, Element* out) {
  const T* values = static_cast<const T*>(w) + at;
  for (int64_t i = 0; i < count; i += 64) {
    float piece[64];
    const int64_t size = smaller(64, count - i);
    for (int64_t k = 0; k < size; ++k) piece[k] = to_float(values[i + k]);
    round_row(piece, size, rounding, out + i);
  }
}

template <class Step>
struct SourceDense : FloatSource<Step, MatmulDenseJob> {
  using Element = typename Step::Element;
  using FloatSource<Step, MatmulDenseJob>::jobs;
  using FloatSource<Step, MatmulDenseJob>::cols;
  using FloatSource<Step, MatmulDenseJob>::rounding;

  void fill(int64_t job, int64_t row, int64_t begin, int64_t count, Element* out) const {
    const auto& j = jobs[job];
    const int64_t at = row * cols + begin;
    if (j.dtype == DType::f32) return round_row(static_cast<const float*>(j.w) + at, count, rounding, out);
    if (j.dtype == DType::f16) return convert_row<f16_t>(j.w, at, count, rounding, out);
    if constexpr (sizeof(Element) == 2)
      std::memcpy(out, static_cast<const uint16_t*>(j.w) + at, static_cast<size_t>(count) * 2);
    else
      convert_row<bf16_t>(j.w, at, count, Rounding::none, out);
  }

  NIBBLE_INLINE void prefetch(int64_t job, int64_t row, int64_t begin, int64_t count) const {
    const int64_t size = jobs[job].dtype == DType::f32 ? 4 : 2;
    prefetch_bytes(static_cast<const char*>(jobs[job].w) + (row * cols + begin) * size, count * size);
  }
};

#if defined(NIBBLE_HAS_DENSE_GEMV)
/// True if the call was one for rows of x that need no panel: of one type, whose values `compute` holds exactly. Each
/// row of x is by itself, in the same order for any number of them: what batch-invariant calls ask for.
bool run_few_rows(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count) {
  if (input.m > kDenseGemvRows && !input.batch_invariant) return false;
  const Rounding rounding = rounding_of(input.compute);
  const DType dtype = jobs[0].dtype;
  for (int64_t j = 1; j < count; ++j)
    if (jobs[j].dtype != dtype) return false;
  if (dtype == DType::bf16) {
#if defined(NIBBLE_AVX512)
    if (rounding == Rounding::bf16) {
      run_gemv_dense<PairLanes>(context, input, rounding, jobs, count);
      return true;
    }
#endif
    run_gemv_dense<WideLanes<bf16_t>>(context, input, rounding, jobs, count);
    return true;
  }
  if (rounding == Rounding::bf16) return false;
  if (dtype == DType::f16)
    run_gemv_dense<WideLanes<f16_t>>(context, input, rounding, jobs, count);
  else
    run_gemv_dense<WideLanes<float>>(context, input, rounding, jobs, count);
  return true;
}
#endif

}  // namespace

void matmul_dense(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count) {
#if defined(NIBBLE_HAS_DENSE_GEMV)
  if (count == 0 || run_few_rows(context, input, jobs, count)) return;
#endif
  run_panels<SourceDense>(context, input, jobs, count);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
