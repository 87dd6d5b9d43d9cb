// Scans over the vocabulary.
#include "generate/top_k.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

namespace nibble {
namespace {

constexpr size_t kBlock = 32;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

/// Largest of a block; NaN never wins.
float block_maximum(const float* values) {
  float lanes[8];
  for (size_t j = 0; j < 8; ++j) lanes[j] = kLowest;
  for (size_t i = 0; i < kBlock; i += 8) {
    for (size_t j = 0; j < 8; ++j) lanes[j] = values[i + j] > lanes[j] ? values[i + j] : lanes[j];
  }
  return std::max({lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5], lanes[6], lanes[7]});
}

/// Calls visit(i) for each value above the threshold that `visit` returns; whole blocks below it are skipped.
template <typename Visit>
void visit_above(std::span<const float> values, float threshold, Visit&& visit) {
  size_t i = 0;
  for (; i + kBlock <= values.size(); i += kBlock) {
    if (!(block_maximum(values.data() + i) > threshold)) continue;
    for (size_t j = i; j < i + kBlock; ++j) {
      if (values[j] > threshold) threshold = visit(j);
    }
  }
  for (; i < values.size(); ++i) {
    if (values[i] > threshold) threshold = visit(i);
  }
}

constexpr size_t kLanes = 8;

/// exp of each x <= 0 by range reduction and a polynomial: relative error below 2e-7, no library call.
void exponential_block(float* x) {
  int32_t whole[kLanes];
  float power[kLanes];
  for (size_t j = 0; j < kLanes; ++j) x[j] = x[j] > -87.0f ? x[j] : -87.0f;
  for (size_t j = 0; j < kLanes; ++j) whole[j] = static_cast<int32_t>(x[j] * 1.44269504f - 0.5f);
  for (size_t j = 0; j < kLanes; ++j) {
    const float n = static_cast<float>(whole[j]);
    const float r = (x[j] - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    x[j] = p * r * r + r + 1.0f;
  }
  for (size_t j = 0; j < kLanes; ++j) whole[j] = (whole[j] + 127) << 23;  // 2^whole as a float's bits
  std::memcpy(power, whole, sizeof power);
  for (size_t j = 0; j < kLanes; ++j) x[j] *= power[j];
}

}  // namespace

int64_t argmax(std::span<const float> values) {
  int64_t best = -1;
  visit_above(values, kLowest, [&](size_t i) {
    best = static_cast<int64_t>(i);
    return values[i];
  });
  return best;
}

std::vector<std::pair<int64_t, float>> top_k(std::span<const float> values, int64_t k) {
  using Entry = std::pair<int64_t, float>;
  const auto is_better = [](const Entry& a, const Entry& b) {
    return a.second > b.second || (a.second == b.second && a.first < b.first);
  };
  std::vector<Entry> heap;  // its front is the worst that is kept
  heap.reserve(static_cast<size_t>(k) + 1);
  size_t rest = 0;  // the first k fill the heap whatever they are
  for (; rest < values.size() && static_cast<int64_t>(heap.size()) < k; ++rest) {
    heap.emplace_back(static_cast<int64_t>(rest), values[rest] > kLowest ? values[rest] : kLowest);
  }
  std::make_heap(heap.begin(), heap.end(), is_better);
  if (!heap.empty()) {
    visit_above(values.subspan(rest), heap.front().second, [&](size_t i) {
      std::pop_heap(heap.begin(), heap.end(), is_better);
      heap.back() = {static_cast<int64_t>(rest + i), values[rest + i]};
      std::push_heap(heap.begin(), heap.end(), is_better);
      return heap.front().second;
    });
  }
  std::sort_heap(heap.begin(), heap.end(), is_better);
  return heap;
}

float kth_largest(std::span<const float> values, int64_t k) {
  constexpr int64_t kHeapLimit = 512;
  if (k <= kHeapLimit) return top_k(values, k).back().second;
  std::vector<float> copy(values.begin(), values.end());
  for (float& value : copy) value = value > kLowest ? value : kLowest;
  std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), std::greater<>());
  return copy[static_cast<size_t>(k - 1)];
}

double exponentials(std::span<const float> values, float maximum, std::span<float> weights) {
  double sums[kLanes] = {};
  float block[kLanes] = {};
  const auto weigh_block = [&] {
    for (size_t j = 0; j < kLanes; ++j) block[j] -= maximum;
    exponential_block(block);
  };
  const auto add_block = [&] {
    for (size_t j = 0; j < kLanes; ++j) sums[j] += static_cast<double>(block[j]);
  };
  const size_t whole = values.size() - values.size() % kLanes, rest = values.size() - whole;
  for (size_t i = 0; i < whole; i += kLanes) {
    std::memcpy(block, values.data() + i, sizeof block);
    weigh_block();
    std::memcpy(weights.data() + i, block, sizeof block);
    add_block();
  }
  std::fill(block, block + kLanes, maximum);
  std::copy_n(values.begin() + static_cast<ptrdiff_t>(whole), rest, block);
  weigh_block();
  std::copy_n(block, rest, weights.begin() + static_cast<ptrdiff_t>(whole));
  std::fill(block + rest, block + kLanes, 0.0f);
  add_block();
  double sum = 0;
  for (const double lane : sums) sum += lane;
  return sum;
}

void log_softmax(std::span<float> values) {
  const int64_t best = argmax(values);
  if (best < 0) return;
  const float maximum = values[static_cast<size_t>(best)];
  std::vector<float> weights(values.size());
  const auto log_sum = static_cast<float>(std::log(exponentials(values, maximum, weights)));
  for (float& value : values) value = (value - maximum) - log_sum;
}

}  // namespace nibble
