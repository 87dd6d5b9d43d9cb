// Scans over the vocabulary: maximum, the k best, softmax. Loops run over fixed blocks so that compilers vectorize
// them.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace nibble {

/// Index of the largest value, the lowest on ties; -1 if there is no value above minus infinity. NaN never wins.
int64_t argmax(std::span<const float> values);

/// The `k` largest (index, value), best first, lower index first on ties; fewer if `values` is shorter. NaN and minus
/// infinity come last, as minus infinity.
std::vector<std::pair<int64_t, float>> top_k(std::span<const float> values, int64_t k);

/// The k-th largest value (k at least 1 and at most the count).
float kth_largest(std::span<const float> values, int64_t k);

/// weights[i] = exp(values[i] - maximum); returns their sum in double. The same bits on every machine.
double exponentials(std::span<const float> values, float maximum, std::span<float> weights);

/// In place: log of softmax. `values` must hold a number above minus infinity.
void log_softmax(std::span<float> values);

}  // namespace nibble
