// Streaming loops over 256 MB, and loops of independent dot products in registers.
#include "bench/machine/peaks.h"

#include <immintrin.h>

#include <cstring>
#include <memory>

namespace nibble::bench {
namespace {

constexpr int64_t kStreamBytes = int64_t{256} << 20;
constexpr int64_t kPieceBytes = int64_t{1} << 20;
constexpr int64_t kSteps = 1 << 20;
constexpr int kAccumulators = 16;

volatile int sink;

struct Memory {
  std::unique_ptr<char[]> data{new char[kStreamBytes + 64]};
  Memory() { std::memset(data.get(), 1, kStreamBytes + 64); }
  char* at(int64_t offset) const { return data.get() + 64 - reinterpret_cast<uintptr_t>(data.get()) % 64 + offset; }
};

void keep(__m512i value) {
  int lanes[16];
  _mm512_storeu_si512(lanes, value);
  sink = lanes[0] + lanes[7] + lanes[15];
}

void read_piece(const char* p) {
  __m512i sum[8] = {};
  for (int64_t i = 0; i < kPieceBytes; i += 512)
    for (int j = 0; j < 8; ++j) sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(p + i + 64 * j));
  for (int j = 1; j < 8; ++j) sum[0] = _mm512_xor_si512(sum[0], sum[j]);
  keep(sum[0]);
}

void copy_piece(const char* from, char* to) {
  for (int64_t i = 0; i < kPieceBytes; i += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
}

template <typename Step>
void dot_loop(Step step) {
  __m512i a = _mm512_set1_epi32(sink), b = _mm512_set1_epi32(sink + 1);
  __m512i sum[kAccumulators];
  for (int j = 0; j < kAccumulators; ++j) sum[j] = _mm512_set1_epi32(j);  // equal chains would be merged
  for (int64_t i = 0; i < kSteps; ++i) {
    for (int j = 0; j < kAccumulators; ++j) sum[j] = step(sum[j], a, b);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  for (int j = 1; j < kAccumulators; ++j) sum[0] = _mm512_xor_si512(sum[0], sum[j]);
  keep(sum[0]);
}

template <typename Step>
Peak dot_peak(ThreadPool& pool, const char* name, int operations, Step step) {
  const int threads = pool.threads();
  return {{name, [&pool, threads, step] { pool.parallel_for(threads, [&](int64_t, int) { dot_loop(step); }); }, 1},
          static_cast<double>(threads) * kSteps * kAccumulators * operations,
          "GOP/s"};
}

}  // namespace

std::vector<Peak> machine_peaks(ThreadPool& pool) {
  const auto source = std::make_shared<Memory>(), target = std::make_shared<Memory>();
  constexpr int64_t kPieces = kStreamBytes / kPieceBytes;
  std::vector<Peak> peaks;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return peaks;
  peaks.push_back({{"read",
                    [&pool, source] {
                      pool.parallel_for(kPieces, [&](int64_t i, int) { read_piece(source->at(i * kPieceBytes)); });
                    }},
                   static_cast<double>(kStreamBytes),
                   "GB/s"});
  peaks.push_back({{"copy",
                    [&pool, source, target] {
                      pool.parallel_for(kPieces, [&](int64_t i, int) {
                        copy_piece(source->at(i * kPieceBytes), target->at(i * kPieceBytes));
                      });
                    }},
                   2.0 * kStreamBytes,
                   "GB/s"});
  peaks.push_back(dot_peak(pool, "bf16 dot", 64, [](__m512i sum, __m512i a, __m512i b) {
    return (__m512i)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }));
  peaks.push_back(dot_peak(pool, "int8 dot", 128,
                           [](__m512i sum, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(sum, a, b); }));
  peaks.push_back(dot_peak(pool, "fp32 fma", 32, [](__m512i sum, __m512i a, __m512i b) {
    return (__m512i)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
  }));
  return peaks;
}

}  // namespace nibble::bench
