// One tensor to quantize and dequantize: values in every type, larger than any cache, and room for results.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/half.h"
#include "bench/harness.h"
#include "kernels/kernels.h"

namespace nibble::bench {

struct Problem {
  int64_t count;
  std::vector<float> f32;
  std::vector<bf16_t> bf16;
};

Problem make_problem(int64_t count);

/// A contender and the bytes that one call must read and write.
struct Entry {
  Contender contender;
  double bytes;
};

// Each adds its contenders, by the work they do: "quantize nf4/64 bf16", ...
void add_nibble(std::vector<Entry>& entries, const Problem& problem, ThreadPool& pool);
void add_memcpy(std::vector<Entry>& entries, const Problem& problem, ThreadPool& pool);
void add_bitsandbytes(std::vector<Entry>& entries, const Problem& problem, const std::string& library);

}  // namespace nibble::bench
