// FP4: sign bit, then one of eight magnitudes (E2M1 scaled to 1, with 1/192 for its smallest). A tie falls to the
// smaller magnitude.
#include <bit>

#include "quant/format.h"

namespace nibble::quant {
namespace {

// Ascending magnitudes, their codes, and the boundary above each: CUDA's decimal literals, not the exact midpoints.
constexpr std::array<float, 8> kMagnitudes{0.0f,      0.0625f / 12, 2.0f / 12, 3.0f / 12,
                                           4.0f / 12, 6.0f / 12,    8.0f / 12, 1.0f};
constexpr std::array<uint8_t, 8> kCodes{0, 1, 6, 7, 4, 5, 2, 3};
constexpr std::array<float, 7> kBoundaries{0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f,
                                           0.4166667f,  0.583333f,  0.8333333f};

constexpr uint8_t kSignBit = 8;

/// The float just below a negative one.
constexpr float below(float negative) { return std::bit_cast<float>(std::bit_cast<uint32_t>(negative) + 1); }

constexpr CodeBook4Bit make() {
  CodeBook4Bit book{};
  for (size_t i = 0; i < 8; ++i) {
    const uint8_t code = kCodes[i];
    book.values[code] = kMagnitudes[i];
    book.values[code | kSignBit] = -kMagnitudes[i];
    book.code_of_rank[8 + i] = code;
    book.code_of_rank[7 - i] = code | kSignBit;
  }
  for (size_t i = 0; i < 7; ++i) {
    book.thresholds[8 + i] = kBoundaries[i];
    book.thresholds[6 - i] = below(-kBoundaries[i]);  // y > below(-b) means y >= -b: a tie goes towards zero here too
  }
  book.thresholds[7] = below(-0.0f);  // the sign bit is set only by y < 0
  book.quant_map = book.values;
  book.quant_map[kSignBit] = 0.0f;
  book.nan_code = 0;
  return book;
}

}  // namespace

constinit const CodeBook4Bit kFp4 = make();

}  // namespace nibble::quant
