// A normal weight and input, quantized by the reference backend.
#include "bench/matmul/problem.h"

#include <algorithm>

#include "base/random.h"
#include "kernels/reference/table.h"
#include "quant/double_quant.h"
#include "quant/format.h"

namespace nibble::bench {

Problem make_problem(int64_t m, int64_t rows, int64_t cols, int64_t block) {
  Problem p{};
  p.m = m, p.rows = rows, p.cols = cols, p.block = block;
  Random random(7);
  const auto count = static_cast<size_t>(rows * cols);
  p.x.resize(static_cast<size_t>(m * cols));
  p.w.resize(count);
  for (auto& value : p.x) value = static_cast<float>(random.normal());
  for (auto& value : p.w) value = static_cast<float>(0.02 * random.normal());
  const auto& kernels = kernels::reference::table();
  const auto blocks = static_cast<size_t>(quant::block_count(rows * cols, block));
  p.packed.resize(count / 2 + 1);
  p.absmax.resize(blocks);
  kernels.quantize_4bit({},
                        {p.w.data(), DType::f32, rows * cols, block, &quant::kNf4, p.packed.data(), p.absmax.data()});
  const auto nested = quant::compress_absmax(p.absmax);
  p.nested_codes = nested.codes, p.nested_absmax = nested.absmax, p.nested_offset = nested.offset;
  std::vector<float> expanded(blocks);
  quant::expand_absmax(nested.codes, nested.absmax, quant::kDynamicSigned.data(), nested.offset, expanded);
  p.w_nf4.resize(count), p.w_nf4_nested.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const float value = quant::kNf4.values[(p.packed[i / 2] >> (i % 2 ? 0 : 4)) & 15];
    p.w_nf4[i] = value * p.absmax[i / static_cast<size_t>(block)];
    p.w_nf4_nested[i] = value * expanded[i / static_cast<size_t>(block)];
  }
  p.int8.resize(count), p.int8_absmax.resize(static_cast<size_t>(rows));
  kernels.quantize_int8_rows({}, {p.w.data(), DType::f32, rows, cols, 0, p.int8.data(), p.int8_absmax.data(), nullptr});
  return p;
}

int64_t copies_for(int64_t bytes) { return std::clamp<int64_t>((int64_t{160} << 20) / bytes, 3, 200); }

}  // namespace nibble::bench
