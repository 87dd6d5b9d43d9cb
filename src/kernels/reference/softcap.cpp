// softcap: squeezes values between -cap and cap.
#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void softcap(const Context& context, const SoftcapArgs& args) {
  const auto cap = static_cast<double>(args.cap);
  for_each(context, args.count, 4096,
           [&](int64_t i) { args.x[i] = static_cast<float>(cap * std::tanh(static_cast<double>(args.x[i]) / cap)); });
}

}  // namespace nibble::kernels::reference
