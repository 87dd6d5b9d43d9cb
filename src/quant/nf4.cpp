// NF4: quantiles of a normal distribution (Dettmers et al., 2023). A tie falls to the lower code.
#include "quant/format.h"

namespace nibble::quant {
namespace {

constexpr std::array<float, 16> kValues{
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

constexpr CodeBook4Bit make() {
  CodeBook4Bit book{};
  book.values = kValues;
  book.quant_map = kValues;
  for (size_t i = 0; i < 15; ++i)
    book.thresholds[i] = (kValues[i] + kValues[i + 1]) * 0.5f;  // in fp32, as the CUDA literals
  for (uint8_t i = 0; i < 16; ++i) book.code_of_rank[i] = i;
  book.nan_code = 0;
  return book;
}

}  // namespace

constinit const CodeBook4Bit kNf4 = make();

}  // namespace nibble::quant
