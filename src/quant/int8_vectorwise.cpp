// LLM.int8(): one scale a row, 127 steps either side of zero (Dettmers et al., 2022).
#include "quant/int8_vectorwise.h"

#include <cmath>

namespace nibble::quant {

int8_t encode_int8(float x, float scale) {
  const float q = std::rint(x * scale);
  if (std::isnan(q)) return 0;
  return static_cast<int8_t>(std::fmin(std::fmax(q, -127.0f), 127.0f));
}

}  // namespace nibble::quant
