// The sizes of the tensors that a LoRA run trains.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace nibble::bench {

/// Elements of each array.
using Sizes = std::vector<int64_t>;

/// LoRA of rank 16 on the seven linear layers of each of 32 layers: hidden 4096, intermediate 11008.
inline Sizes lora_sizes() {
  Sizes sizes;
  for (int layer = 0; layer < 32; ++layer)
    for (const auto& [in, out] : {std::pair<int64_t, int64_t>{4096, 4096},
                                  {4096, 4096},
                                  {4096, 4096},
                                  {4096, 4096},
                                  {4096, 11008},
                                  {4096, 11008},
                                  {11008, 4096}}) {
      sizes.push_back(16 * in);
      sizes.push_back(16 * out);
    }
  return sizes;
}

}  // namespace nibble::bench
