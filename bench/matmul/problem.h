// One matmul to race: x (m, cols), and copies of one weight (rows, cols) in every format, too many for any cache.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "bench/harness.h"

namespace nibble::bench {

struct Problem {
  int64_t m, rows, cols, block;
  std::vector<float> x;      // (m, cols)
  std::vector<float> w;      // (rows, cols), before quantization
  std::vector<float> w_nf4;  // decoded in fp32
  std::vector<uint8_t> packed;
  std::vector<float> absmax;  // (blocks)
  std::vector<uint8_t> nested_codes;
  std::vector<float> nested_absmax;
  float nested_offset;
  std::vector<float> w_nf4_nested;  // decoded in fp32
  std::vector<int8_t> int8;
  std::vector<float> int8_absmax;  // (rows)
};

Problem make_problem(int64_t m, int64_t rows, int64_t cols, int64_t block);

/// A contender, with what it reads from memory in a call and the last output it gave.
struct Entry {
  Contender contender;
  double read_bytes;
  const std::vector<float>* truth;  // the weight that its error is taken against
  std::vector<float> y;             // (m, rows)
};

/// Copies of `bytes` that together overflow the caches: 160 MB, at least 3, at most 200.
int64_t copies_for(int64_t bytes);

// Each adds its contenders; those that this machine or this build lacks add none.
void add_nibble(std::vector<Entry*>& entries, const Problem& problem, ThreadPool& pool);
void add_bitsandbytes(std::vector<Entry*>& entries, const Problem& problem, const std::string& library);
void add_onednn(std::vector<Entry*>& entries, const Problem& problem);

}  // namespace nibble::bench
