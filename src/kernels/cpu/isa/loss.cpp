// cross_entropy, dropout and add_scaled.
#include "kernels/cpu/isa/dropout_lanes.h"
#include "kernels/cpu/isa/math.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

/// log x in double, of positive normal numbers: the library's is no part of an instruction set's file.
double natural_log(double x) { return __builtin_log(x); }

void loss_row(const CrossEntropyArgs& args, int64_t r) {
  float* logits = args.logits + r * args.vocab;
  const int32_t target = args.targets[r];
  if (target < 0) {
    for (int64_t c = 0; c < args.vocab; ++c) logits[c] = 0;
    args.loss[r] = 0;
    return;
  }
  const float infinity = __builtin_inff();
  F32 most = set1(-infinity);
  int64_t c = 0;
  for (; c + kLanes <= args.vocab; c += kLanes) most = max(most, load(logits + c));
  float largest = reduce_max(most);
  for (; c < args.vocab; ++c) largest = logits[c] > largest ? logits[c] : largest;
  const float at_target = logits[target];
  // Sums of a few thousand terms in float, those in double: the vocabulary may have 250,000.
  double total = 0;
  for (c = 0; c < args.vocab;) {
    const int64_t end = min_of(args.vocab, c + 4096);
    F32 sum = set1(0);
    for (; c < end; c += kLanes) {
      const int64_t n = min_of(kLanes, end - c);
      F32 p = exp(load_first(logits + c, n) - set1(largest));
      store_first(logits + c, p, n);
      if (n < kLanes) p = load_some(logits + c, n);
      sum = sum + p;
    }
    total += static_cast<double>(reduce_add(sum));
  }
  args.loss[r] = static_cast<float>(natural_log(total) + static_cast<double>(largest) - static_cast<double>(at_target));
  const F32 share = set1(static_cast<float>(static_cast<double>(args.scale) / total));
  for (c = 0; c < args.vocab; c += kLanes) {
    const int64_t n = min_of(kLanes, args.vocab - c);
    store_first(logits + c, load_first(logits + c, n) * share, n);
  }
  logits[target] -= args.scale;
}

}  // namespace

void cross_entropy(const Context& context, const CrossEntropyArgs& args) {
  for_ranges(context, args.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) loss_row(args, r);
  });
}

void dropout(const Context& context, const DropoutArgs& args) {
  const DropoutRun run{args.seed, args.p};
  for_ranges(context, args.count, 16384, [&](int64_t begin, int64_t end) {
    drop_run(run, static_cast<uint64_t>(args.first + begin), args.x + begin, end - begin, args.out + begin);
  });
}

void add_scaled(const Context& context, const AddScaledArgs& args) {
  for_ranges(context, args.count, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) {
      const int64_t n = min_of(kLanes, end - i);
      store_first(args.y + i, fma(set1(args.scale), load_first(args.x + i, n), load_first(args.y + i, n)), n);
    }
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
