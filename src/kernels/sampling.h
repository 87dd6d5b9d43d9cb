// Entries between logits and the choice of a token: a penalty on tokens that occurred, and the best of a row.
#pragma once

#include <cstdint>

namespace nibble::kernels {

/// Of row r's tokens, tokens[offsets[r]] to tokens[offsets[r + 1] - 1]: a score below zero is multiplied by `penalty`,
/// any other divided by it. A row names a token once.
struct PenalizeArgs {
  float* x;  // (rows, cols)
  int64_t rows, cols;
  const int32_t* tokens;
  const int32_t* offsets;  // (rows + 1)
  float penalty;
};

/// The `count` largest of each row, falling, of equals the lower column first. NaN and minus infinity do not count:
/// what is missing has column -1 and value minus infinity.
/// masses[r] is the sum over the row of exp((x - the largest x) / temperature): log(masses[r]) + largest / temperature
/// is its log-sum-exp. It is good to 1e-6 of itself, and 0 if no x counts.
struct TopCandidatesArgs {
  const float* x;  // (rows, cols)
  int64_t rows;
  int64_t cols;   // at most kMostCandidateColumns
  int64_t count;  // 1 to kMostCandidates
  float temperature;
  int32_t* columns;  // (rows, count)
  float* values;     // (rows, count)
  float* masses;     // (rows)
};

inline constexpr int64_t kMostCandidates = 512;
inline constexpr int64_t kMostCandidateColumns = 393216;

}  // namespace nibble::kernels
