// center: a mean and what is left without it.
#include "kernels/cpu/isa/entries.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

void center(const Context&, const CenterArgs& args) {
  double sum = 0;
  for (int64_t i = 0; i < args.count; ++i) sum += static_cast<double>(args.x[i]);
  *args.mean = args.count > 0 ? static_cast<float>(sum / static_cast<double>(args.count)) : 0.0f;
  for (int64_t i = 0; i < args.count; ++i) args.x[i] -= *args.mean;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
