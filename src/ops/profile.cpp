// Wraps each function pointer of the table in one that reads the clock.
#include "ops/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

namespace nibble::ops {
namespace {

struct Row {
  const char* name;
  std::atomic<int64_t> nanoseconds;
  std::atomic<int64_t> calls;
};

const kernels::Kernels* base = nullptr;

template <auto Member>
Row row{"", 0, 0};

std::vector<Row*>& rows() {
  static std::vector<Row*> list;
  return list;
}

template <auto Member, typename... Args>
void timed(Args... args) {
  const auto begin = std::chrono::steady_clock::now();
  (base->*Member)(args...);
  const auto elapsed = std::chrono::steady_clock::now() - begin;
  row<Member>.nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count();
  ++row<Member>.calls;
}

template <auto Member, typename... Args>
void wrap(const char* name, kernels::Kernels& table, void (*entry)(Args...)) {
  row<Member>.name = name;
  rows().push_back(&row<Member>);
  table.*Member = entry ? &timed<Member, Args...> : nullptr;
}

kernels::Kernels wrapped() {
  kernels::Kernels table = *base;
#define NIBBLE_WRAP(entry) wrap<&kernels::Kernels::entry>(#entry, table, base->entry)
  NIBBLE_WRAP(quantize_4bit);
  NIBBLE_WRAP(dequantize_4bit);
  NIBBLE_WRAP(quantize_8bit);
  NIBBLE_WRAP(dequantize_8bit);
  NIBBLE_WRAP(center);
  NIBBLE_WRAP(quantize_int8_rows);
  NIBBLE_WRAP(dequantize_int8_rows);
  NIBBLE_WRAP(matmul_4bit);
  NIBBLE_WRAP(matmul_dense);
  NIBBLE_WRAP(matmul_int8);
  NIBBLE_WRAP(rms_norm);
  NIBBLE_WRAP(layer_norm);
  NIBBLE_WRAP(rope);
  NIBBLE_WRAP(cache_append);
  NIBBLE_WRAP(rotate_append);
  NIBBLE_WRAP(attention);
  NIBBLE_WRAP(activate);
  NIBBLE_WRAP(embed);
  NIBBLE_WRAP(split_heads);
  NIBBLE_WRAP(softcap);
  NIBBLE_WRAP(argmax);
  NIBBLE_WRAP(penalize);
  NIBBLE_WRAP(top_candidates);
  NIBBLE_WRAP(route_experts);
  NIBBLE_WRAP(scatter_add_rows);
  NIBBLE_WRAP(optimizer_step_32bit);
  NIBBLE_WRAP(optimizer_step_8bit);
  NIBBLE_WRAP(sum_squares);
#undef NIBBLE_WRAP
  return table;
}

}  // namespace

const kernels::Kernels& profiled(const kernels::Kernels& table) {
  static const kernels::Kernels result = (base = &table, wrapped());
  return result;
}

std::string profile_report() {
  std::vector<Row*> order = rows();
  std::sort(order.begin(), order.end(), [](const Row* a, const Row* b) { return a->nanoseconds > b->nanoseconds; });
  std::string text;
  for (const Row* entry : order)
    if (entry->calls > 0)
      text += fmt::format("{:>9.3f} s {:>9} calls  {}\n", double(entry->nanoseconds) * 1e-9, entry->calls.load(),
                          entry->name);
  return text;
}

}  // namespace nibble::ops
