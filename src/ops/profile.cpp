// Wraps each function pointer of the table in one that reads the clock.
#include "ops/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string_view>
#include <type_traits>
#include <vector>

#include "device/cuda.h"

namespace nibble::ops {
namespace {

struct Row {
  const char* name;
  std::atomic<int64_t> nanoseconds;
  std::atomic<int64_t> calls;
};

/// The tables that are timed: the CPU's and the GPU's.
const kernels::Kernels* bases[2] = {};

template <int kTable, auto Member>
Row row{"", 0, 0};

std::vector<Row*>& rows() {
  static std::vector<Row*> list;
  return list;
}

/// On a GPU an entry returns before its work is done.
void finish(const kernels::Context& context) {
  if (context.stream) device::synchronize_stream(context.stream);
}

/// Adds the time from its construction on to an entry's row, unless the entry did nothing.
template <int kTable, auto Member>
struct Timer {
  const kernels::Context& context;
  std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();

  void stop() {
    finish(context);
    const auto elapsed = std::chrono::steady_clock::now() - begin;
    row<kTable, Member>.nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count();
    ++row<kTable, Member>.calls;
  }
};

template <int kTable, auto Member, typename Result, typename... Args>
Result timed(const kernels::Context& context, Args... args) {
  finish(context);
  Timer<kTable, Member> timer{context};
  if constexpr (std::is_void_v<Result>) {
    (bases[kTable]->*Member)(context, args...);
    timer.stop();
  } else {
    const Result was_taken = (bases[kTable]->*Member)(context, args...);
    if (was_taken) timer.stop();
    return was_taken;
  }
}

template <int kTable, auto Member, typename Result, typename... Args>
void wrap(const char* name, kernels::Kernels& table, Result (*entry)(const kernels::Context&, Args...)) {
  row<kTable, Member>.name = name;
  rows().push_back(&row<kTable, Member>);
  table.*Member = entry ? &timed<kTable, Member, Result, Args...> : nullptr;
}

template <int kTable>
kernels::Kernels wrapped(const kernels::Kernels& base) {
  bases[kTable] = &base;
  kernels::Kernels table = base;
#define NIBBLE_WRAP(entry) wrap<kTable, &kernels::Kernels::entry>(#entry, table, base.entry)
  NIBBLE_WRAP(quantize_4bit);
  NIBBLE_WRAP(dequantize_4bit);
  NIBBLE_WRAP(quantize_8bit);
  NIBBLE_WRAP(dequantize_8bit);
  NIBBLE_WRAP(center);
  NIBBLE_WRAP(quantize_int8_rows);
  NIBBLE_WRAP(dequantize_int8_rows);
  NIBBLE_WRAP(matmul_4bit);
  NIBBLE_WRAP(matmul_4bit_fused);
  NIBBLE_WRAP(matmul_dense);
  NIBBLE_WRAP(matmul_int8);
  NIBBLE_WRAP(matmul_int8_fused);
  NIBBLE_WRAP(rms_norm);
  NIBBLE_WRAP(layer_norm);
  NIBBLE_WRAP(rope);
  NIBBLE_WRAP(cache_append);
  NIBBLE_WRAP(rotate_append);
  NIBBLE_WRAP(attention);
  NIBBLE_WRAP(rotate_attention);
  NIBBLE_WRAP(activate);
  NIBBLE_WRAP(embed);
  NIBBLE_WRAP(split_heads);
  NIBBLE_WRAP(softcap);
  NIBBLE_WRAP(argmax);
  NIBBLE_WRAP(penalize);
  NIBBLE_WRAP(top_candidates);
  NIBBLE_WRAP(route_experts);
  NIBBLE_WRAP(scatter_add_rows);
  NIBBLE_WRAP(input_gradient);
  NIBBLE_WRAP(weight_gradient);
  NIBBLE_WRAP(rms_norm_gradient);
  NIBBLE_WRAP(layer_norm_gradient);
  NIBBLE_WRAP(activate_gradient);
  NIBBLE_WRAP(attention_gradient);
  NIBBLE_WRAP(route_experts_gradient);
  NIBBLE_WRAP(dot_rows);
  NIBBLE_WRAP(cross_entropy);
  NIBBLE_WRAP(dropout);
  NIBBLE_WRAP(add_scaled);
  NIBBLE_WRAP(low_rank_update);
  NIBBLE_WRAP(low_rank_gradient);
  NIBBLE_WRAP(scale_columns);
  NIBBLE_WRAP(sum_columns);
  NIBBLE_WRAP(optimizer_step_32bit);
  NIBBLE_WRAP(optimizer_step_8bit);
  NIBBLE_WRAP(sum_squares);
#undef NIBBLE_WRAP
  return table;
}

}  // namespace

const kernels::Kernels& profiled(const kernels::Kernels& table) {
  if (std::string_view(table.name).starts_with("cuda")) {
    static const kernels::Kernels of_gpu = wrapped<1>(table);
    return of_gpu;
  }
  static const kernels::Kernels of_cpu = wrapped<0>(table);
  return of_cpu;
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
