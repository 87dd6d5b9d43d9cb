// The limit: the C library's memcpy of the fp32 values, 1 MB at a time on all threads.
#include <cstring>
#include <memory>

#include "bench/quantize/problem.h"

namespace nibble::bench {

void add_memcpy(std::vector<Entry>& entries, const Problem& problem, ThreadPool& pool) {
  constexpr int64_t kPiece = 1 << 18;
  const auto out = std::make_shared<std::vector<float>>(problem.f32.size());
  const int64_t pieces = problem.count / kPiece;
  entries.push_back({{"memcpy fp32",
                      [&problem, &pool, out, pieces] {
                        pool.parallel_for(pieces, [&](int64_t i, int) {
                          std::memcpy(out->data() + i * kPiece, problem.f32.data() + i * kPiece,
                                      kPiece * sizeof(float));
                        });
                      }},
                     8.0 * static_cast<double>(pieces * kPiece)});
}

}  // namespace nibble::bench
