// Judging two sets of codes for the same values.
#include "code_allowance.h"

#include <algorithm>
#include <cstdlib>

#include "golden.h"

namespace nibble::parity {
namespace {

constexpr int64_t kAllowedUlps = 2;

int rank_of(const quant::CodeBook4Bit& code_book, uint8_t code) {
  const auto found = std::find(code_book.code_of_rank.begin(), code_book.code_of_rank.end(), code);
  return static_cast<int>(found - code_book.code_of_rank.begin());
}

uint8_t code_at(const uint8_t* packed, int64_t i) { return i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15; }

}  // namespace

CodeDifferences compare_codes_4bit(const Tensor& x, int64_t block, const quant::CodeBook4Bit& code_book,
                                   std::span<const float> absmax, const uint8_t* ours, const uint8_t* theirs) {
  CodeDifferences result;
  for (int64_t i = 0; i < x.count(); ++i) {
    const uint8_t a = code_at(ours, i);
    const uint8_t b = code_at(theirs, i);
    if (a == b) continue;
    const int low = std::min(rank_of(code_book, a), rank_of(code_book, b));
    const int high = std::max(rank_of(code_book, a), rank_of(code_book, b));
    const float y = at(x, i) * (1.0f / absmax[static_cast<size_t>(i / block)]);
    const bool is_near =
        high == low + 1 && ulps_between(y, code_book.thresholds[static_cast<size_t>(low)]) <= kAllowedUlps;
    ++(is_near ? result.at_threshold : result.wrong);
  }
  return result;
}

CodeDifferences compare_codes_8bit(std::span<const float> x, int64_t block, const float* code_book,
                                   std::span<const float> absmax, const uint8_t* ours, const uint8_t* theirs) {
  CodeDifferences result;
  for (size_t i = 0; i < x.size(); ++i) {
    if (ours[i] == theirs[i]) continue;
    const int low = std::min(ours[i], theirs[i]);
    const float y = x[i] * (1.0f / absmax[i / static_cast<size_t>(block)]);
    const float midpoint = (code_book[low] + code_book[std::min(low + 1, 255)]) * 0.5f;
    const bool is_near = std::abs(ours[i] - theirs[i]) == 1 && ulps_between(y, midpoint) <= kAllowedUlps;
    ++(is_near ? result.at_threshold : result.wrong);
  }
  return result;
}

}  // namespace nibble::parity
