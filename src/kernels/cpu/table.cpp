// Chooses the instruction set. The only place that asks the processor what it can do.
#include "kernels/cpu/table.h"

#ifdef NIBBLE_HAS_ISA_avx512
#include <cpuid.h>
#endif

#include <array>

#include "base/environment.h"
#include "base/error.h"

namespace nibble::kernels::cpu {

#ifdef NIBBLE_HAS_ISA_avx2
namespace avx2 {
const Kernels& table();
}
#endif
#ifdef NIBBLE_HAS_ISA_avx512
namespace avx512 {
const Kernels& table();
}
#endif
namespace portable {
const Kernels& table();
}

#ifdef NIBBLE_HAS_ISA_avx512
namespace {
// clang 14's __builtin_cpu_supports does not know "avx512bf16": CPUID leaf 7.1, EAX bit 5.
bool has_avx512bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1) != 0;
}
}  // namespace
#endif

std::span<const Isa> isas() {
  static const std::array list{
      Isa{"portable", true, &portable::table()},
#ifdef NIBBLE_HAS_ISA_avx2
      Isa{"avx2",
          __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
              __builtin_cpu_supports("f16c"),
          &avx2::table()},
#endif
#ifdef NIBBLE_HAS_ISA_avx512
      Isa{"avx512",
          __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
              __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bitalg") &&
              __builtin_cpu_supports("avx512vpopcntdq") && has_avx512bf16(),
          &avx512::table()},
#endif
  };
  return list;
}

const Kernels& table() {
  const auto& forced = environment().force_isa;
  const Isa* best = nullptr;
  for (const auto& isa : isas()) {
    if (forced == isa.name && !isa.is_supported)
      fail(ErrorCode::unsupported, "NIBBLE_FORCE_ISA={}: this processor lacks it", forced);
    if (isa.is_supported && (forced.empty() || forced == isa.name)) best = &isa;
  }
  if (!best) fail(ErrorCode::invalid_argument, "NIBBLE_FORCE_ISA={}: expected portable, avx2 or avx512", forced);
  return *best->table;
}

}  // namespace nibble::kernels::cpu
