// Ours: matmul_4bit, matmul_dense and matmul_int8 of the CPU backend.
#include <memory>

#include "base/half.h"
#include "bench/matmul/problem.h"
#include "kernels/cpu/table.h"
#include "quant/format.h"

namespace nibble::bench {
namespace {

using kernels::Absmax;
using kernels::MatmulInput;

/// Buffers of one format, repeated.
template <typename T>
std::shared_ptr<std::vector<std::vector<T>>> repeat(const std::vector<T>& values, int64_t copies) {
  return std::make_shared<std::vector<std::vector<T>>>(static_cast<size_t>(copies), values);
}

Entry* make_entry(const Problem& p, std::string name, double bytes, const std::vector<float>* truth, int64_t calls) {
  auto* entry = new Entry{{"nibble " + std::move(name), {}, static_cast<double>(calls)}, bytes, truth, {}};
  entry->y.resize(static_cast<size_t>(p.m * p.rows));
  return entry;
}

void add_4bit(std::vector<Entry*>& entries, const Problem& p, ThreadPool& pool, bool nested, DType compute) {
  const int64_t copies = copies_for(p.rows * p.cols / 2), calls = p.m == 1 ? copies : 3;
  const double scales =
      nested ? static_cast<double>(p.nested_codes.size()) : 4.0 * static_cast<double>(p.absmax.size());
  auto* entry =
      make_entry(p, std::string(nested ? "nf4+dq " : "nf4 ") + std::string(name_of(compute)),
                 static_cast<double>(p.rows * p.cols) / 2 + scales, nested ? &p.w_nf4_nested : &p.w_nf4, calls);
  auto packed = repeat(p.packed, copies);
  auto absmax = repeat(p.absmax, copies);
  auto codes = repeat(p.nested_codes, copies);
  entry->contender.run = [=, &p, &pool, next = int64_t{0}]() mutable {
    for (int64_t i = 0; i < calls; ++i, next = (next + 1) % copies) {
      const auto at = static_cast<size_t>(next);
      Absmax a;
      if (nested) {
        a = {nullptr, (*codes)[at].data(), p.nested_absmax.data(), quant::kDynamicSigned.data(), p.nested_offset};
      } else {
        a.values = (*absmax)[at].data();
      }
      const kernels::Matmul4BitJob job{(*packed)[at].data(),      a,      p.block,
                                       quant::kNf4.values.data(), p.rows, {entry->y.data(), p.rows}};
      kernels::cpu::table().matmul_4bit({&pool}, {p.x.data(), p.m, p.cols, compute}, &job, 1);
    }
  };
  entries.push_back(entry);
}

void add_int8(std::vector<Entry*>& entries, const Problem& p, ThreadPool& pool) {
  const int64_t copies = copies_for(p.rows * p.cols), calls = p.m == 1 ? copies : 3;
  auto* entry = make_entry(p, "int8", static_cast<double>(p.rows * p.cols), &p.w, calls);
  auto w = repeat(p.int8, copies);
  entry->contender.run = [=, &p, &pool, next = int64_t{0}]() mutable {
    for (int64_t i = 0; i < calls; ++i, next = (next + 1) % copies) {
      const kernels::MatmulInt8Job job{
          (*w)[static_cast<size_t>(next)].data(), p.int8_absmax.data(), p.rows, {entry->y.data(), p.rows}};
      kernels::cpu::table().matmul_int8({&pool}, {p.x.data(), p.m, p.cols, DType::bf16}, 6.0f, &job, 1);
    }
  };
  entries.push_back(entry);
}

void add_dense(std::vector<Entry*>& entries, const Problem& p, ThreadPool& pool, DType compute) {
  const int64_t copies = copies_for(p.rows * p.cols * 2), calls = p.m == 1 ? copies : 3;
  auto* entry = make_entry(p, "dense bf16 in " + std::string(name_of(compute)),
                           static_cast<double>(p.rows * p.cols) * 2, &p.w, calls);
  std::vector<uint16_t> bits;
  for (const float value : p.w) bits.push_back(to_bf16(value).bits);
  auto w = repeat(bits, copies);
  entry->contender.run = [=, &p, &pool, next = int64_t{0}]() mutable {
    for (int64_t i = 0; i < calls; ++i, next = (next + 1) % copies) {
      const kernels::MatmulDenseJob job{
          (*w)[static_cast<size_t>(next)].data(), DType::bf16, p.rows, {entry->y.data(), p.rows}};
      kernels::cpu::table().matmul_dense({&pool}, {p.x.data(), p.m, p.cols, compute}, &job, 1);
    }
  };
  entries.push_back(entry);
}

}  // namespace

void add_nibble(std::vector<Entry*>& entries, const Problem& problem, ThreadPool& pool) {
  for (const bool nested : {false, true})
    for (const DType compute : {DType::bf16, DType::f32}) add_4bit(entries, problem, pool, nested, compute);
  add_int8(entries, problem, pool);
  for (const DType compute : {DType::bf16, DType::f32}) add_dense(entries, problem, pool, compute);
}

}  // namespace nibble::bench
