// The CPU kernel of bitsandbytes, from its own shared library: bf16 in, bf16 absmax, its own packed order.
#include <dlfcn.h>

#include <cstdio>
#include <memory>

#include "base/half.h"
#include "bench/matmul/problem.h"

namespace nibble::bench {
namespace {

using Gemv = void (*)(int64_t m, int64_t n, int64_t k, const uint16_t* x, const uint8_t* w, const uint16_t* absmax,
                      uint16_t* y, int64_t block, int64_t x_stride, int64_t y_stride);

int code_at(const Problem& p, int64_t row, int64_t col) {
  const int64_t i = row * p.cols + col;
  return (p.packed[static_cast<size_t>(i / 2)] >> (i % 2 ? 0 : 4)) & 15;
}

/// Groups of 32 rows; in a pair of columns, byte j holds row j / 2 low and row 16 + j / 2 high, column j % 2.
std::vector<uint8_t> pack(const Problem& p) {
  std::vector<uint8_t> out;
  for (int64_t group = 0; group < p.rows; group += 32)
    for (int64_t pair = 0; pair < p.cols; pair += 2)
      for (int j = 0; j < 32; ++j)
        out.push_back(static_cast<uint8_t>(code_at(p, group + j / 2, pair + j % 2) |
                                           code_at(p, group + 16 + j / 2, pair + j % 2) << 4));
  return out;
}

/// (cols / block, rows) in bf16.
std::vector<uint16_t> pack_absmax(const Problem& p) {
  std::vector<uint16_t> out;
  const int64_t blocks = p.cols / p.block;
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t n = 0; n < p.rows; ++n) out.push_back(to_bf16(p.absmax[static_cast<size_t>(n * blocks + b)]).bits);
  return out;
}

}  // namespace

void add_bitsandbytes(std::vector<Entry*>& entries, const Problem& p, const std::string& library) {
  if (library.empty() || p.rows % 32 || p.cols % p.block) return;
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  auto* gemv = handle ? reinterpret_cast<Gemv>(dlsym(handle, "gemv_4bit_inference_cpu_nf4_bf16")) : nullptr;
  if (!gemv) {
    std::fprintf(stderr, "bitsandbytes: %s\n", dlerror());
    return;
  }
  const int64_t copies = copies_for(p.rows * p.cols / 2), calls = p.m == 1 ? copies : 3;
  const auto absmax = pack_absmax(p);
  const auto weights = std::make_shared<std::vector<std::vector<uint8_t>>>(static_cast<size_t>(copies), pack(p));
  std::vector<uint16_t> x;
  for (const float value : p.x) x.push_back(to_bf16(value).bits);
  auto* entry = new Entry{{"bitsandbytes nf4", {}, static_cast<double>(calls)},
                          static_cast<double>(p.rows * p.cols) / 2 + 2.0 * static_cast<double>(absmax.size()),
                          &p.w_nf4,
                          {}};
  entry->y.resize(static_cast<size_t>(p.m * p.rows));
  entry->contender.run = [=, &p, y = std::vector<uint16_t>(entry->y.size()), next = int64_t{0}]() mutable {
    for (int64_t i = 0; i < calls; ++i, next = (next + 1) % copies)
      gemv(p.m, p.rows, p.cols, x.data(), (*weights)[static_cast<size_t>(next)].data(), absmax.data(), y.data(),
           p.block, p.cols, p.rows);
    for (size_t i = 0; i < y.size(); ++i) entry->y[i] = to_float(bf16_t{y[i]});
  };
  entries.push_back(entry);
}

}  // namespace nibble::bench
