// softcap: squeezes values between -cap and cap.
#include "kernels/cpu/isa/math.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

void softcap(const Context& context, const SoftcapArgs& args) {
  for_ranges(context, args.count, 16384, [&](int64_t begin, int64_t end) {
    const F32 cap = set1(args.cap);
    for (int64_t i = begin; i < end; i += kLanes) {
      const int64_t n = min_of(kLanes, end - i);
      const F32 x = n == kLanes ? load(args.x + i) : load_some(args.x + i, n);
      const F32 y = cap * tanh(x / cap);
      n == kLanes ? store(args.x + i, y) : store_some(args.x + i, y, n);
    }
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
