// Our kernels: the best instruction set of this machine, or NIBBLE_FORCE_ISA.
#include <memory>

#include "bench/quantize/problem.h"
#include "kernels/cpu/table.h"

namespace nibble::bench {
namespace {

/// 64-byte aligned, as tensors are.
struct Aligned {
  std::unique_ptr<char[]> memory;
  char* data;
  explicit Aligned(int64_t size) : memory(new char[static_cast<size_t>(size) + 64]) {
    data = memory.get() + 64 - reinterpret_cast<uintptr_t>(memory.get()) % 64;
    for (int64_t i = 0; i < size; i += 4096) data[i] = 0;
  }
};

struct Place {
  Aligned x, codes, absmax;
};

template <typename T>
void add_type(std::vector<Entry>& entries, const std::vector<T>& values, DType dtype, ThreadPool& pool) {
  const auto count = static_cast<int64_t>(values.size());
  const auto n = static_cast<double>(count);
  const std::string type = dtype == DType::f32 ? " fp32" : " bf16";
  const kernels::Kernels& k = kernels::cpu::table();
  const kernels::Context c{&pool};
  const auto place = std::make_shared<Place>(
      Place{Aligned(count * int64_t{sizeof(T)}), Aligned(count), Aligned(quant::block_count(count, 32) * 4)});
  std::copy(values.begin(), values.end(), reinterpret_cast<T*>(place->x.data));
  auto* codes = reinterpret_cast<uint8_t*>(place->codes.data);
  auto* absmax = reinterpret_cast<float*>(place->absmax.data);
  void* x = place->x.data;
  // Real codes, also where only dequantizing is timed.
  k.quantize_8bit(c, {x, dtype, count, 64, quant::kDynamicSigned.data(), codes, absmax});
  const auto add = [&](const std::string& name, double bytes, std::function<void()> run) {
    entries.push_back({{"nibble " + name + type, [place, run] { run(); }}, bytes});
  };
  const double size = sizeof(T);

  for (const auto& [name, book] : {std::pair{"nf4/64", &quant::kNf4}, std::pair{"fp4/64", &quant::kFp4}})
    add(std::string("quantize ") + name, n * (size + 0.5 + 4.0 / 64), [=] {
      k.quantize_4bit(c, {x, dtype, count, 64, book, codes, absmax});
    });
  add("quantize dynamic8/4096", n * (size + 1 + 4.0 / 4096), [=] {
    k.quantize_8bit(c, {x, dtype, count, 4096, quant::kDynamicSigned.data(), codes, absmax});
  });
  add("quantize dynamic8/256", n * (size + 1 + 4.0 / 256), [=] {
    k.quantize_8bit(c, {x, dtype, count, 256, quant::kDynamicSigned.data(), codes, absmax});
  });
  add("quantize int8 rows", n * (size + 1), [=] {
    k.quantize_int8_rows(c, {x, dtype, count / 4096, 4096, 0, reinterpret_cast<int8_t*>(codes), absmax, nullptr});
  });
  const auto out = std::make_shared<Aligned>(count * int64_t{sizeof(T)});
  add("dequantize nf4/64", n * (size + 0.5 + 4.0 / 64), [=] {
    k.dequantize_4bit(
        c, {codes, {absmax, nullptr, nullptr, nullptr, 0}, count, 64, quant::kNf4.values.data(), out->data, dtype});
  });
  add("dequantize dynamic8/4096", n * (size + 1 + 4.0 / 4096), [=] {
    k.dequantize_8bit(c, {codes, absmax, count, 4096, quant::kDynamicSigned.data(), out->data, dtype});
  });
  add("dequantize dynamic8/256", n * (size + 1 + 4.0 / 256), [=] {
    k.dequantize_8bit(c, {codes, absmax, count, 256, quant::kDynamicSigned.data(), out->data, dtype});
  });
  add("dequantize int8 rows", n * (size + 1), [=] {
    k.dequantize_int8_rows(c, {reinterpret_cast<int8_t*>(codes), absmax, count / 4096, 4096, out->data, dtype});
  });
}

}  // namespace

void add_nibble(std::vector<Entry>& entries, const Problem& problem, ThreadPool& pool) {
  add_type(entries, problem.f32, DType::f32, pool);
  add_type(entries, problem.bf16, DType::bf16, pool);
}

}  // namespace nibble::bench
