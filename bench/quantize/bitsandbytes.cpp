// bitsandbytes' CPU library: 8-bit blockwise both ways, 4-bit dequantization (it has no native 4-bit quantizer).
#include <dlfcn.h>

#include <cstdio>
#include <memory>

#include "bench/quantize/problem.h"

namespace nibble::bench {
namespace {

using Blockwise8 = void (*)(float* code, const void* a, float* absmax, void* out, long long block, long long n);
using Dequantize4 = void (*)(const uint8_t* a, const float* absmax, void* out, long long block, long long m,
                             long long n);

struct Results {
  std::vector<uint8_t> codes;
  std::vector<float> absmax, map, out;
};

template <typename Function>
Function symbol(void* library, const std::string& name) {
  auto* found = reinterpret_cast<Function>(dlsym(library, name.c_str()));
  if (!found) std::fprintf(stderr, "bitsandbytes: no symbol %s\n", name.c_str());
  return found;
}

template <typename T>
void add_type(std::vector<Entry>& entries, const std::vector<T>& x, const char* type, void* library) {
  const auto n = static_cast<long long>(x.size());
  const auto results = std::make_shared<Results>();
  results->codes.resize(x.size(), 0x5a);
  results->absmax.resize(x.size() / 64, 1.0f);
  results->out.resize(x.size());
  results->map.assign(quant::kDynamicSigned.begin(), quant::kDynamicSigned.end());
  const auto quantize = symbol<Blockwise8>(library, std::string("cquantize_blockwise_cpu_") + type);
  const auto dequantize = symbol<Blockwise8>(library, std::string("cdequantize_blockwise_cpu_") + type);
  const auto dequantize4 = symbol<Dequantize4>(library, std::string("cdequantize_blockwise_cpu_nf4_") + type);
  const double count = static_cast<double>(n), size = sizeof(T);
  const auto add = [&](const std::string& name, double bytes, std::function<void()> run) {
    entries.push_back({{"bitsandbytes " + name + " " + type, std::move(run)}, bytes});
  };
  for (const long long block : {4096, 256}) {
    const std::string format = "dynamic8/" + std::to_string(block);
    const double bytes = count * (size + 1 + 4.0 / static_cast<double>(block));
    if (quantize)
      add("quantize " + format, bytes, [=, &x] {
        quantize(results->map.data(), x.data(), results->absmax.data(), results->codes.data(), block, n);
      });
    if (dequantize)
      add("dequantize " + format, bytes, [=] {
        dequantize(results->map.data(), results->codes.data(), results->absmax.data(), results->out.data(), block, n);
      });
  }
  if (dequantize4)
    add("dequantize nf4/64", count * (size + 0.5 + 4.0 / 64),
        [=] { dequantize4(results->codes.data(), results->absmax.data(), results->out.data(), 64, n / 4096, 4096); });
}

}  // namespace

void add_bitsandbytes(std::vector<Entry>& entries, const Problem& problem, const std::string& path) {
  if (path.empty()) return;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "bitsandbytes: %s\n", dlerror());
    return;
  }
  add_type(entries, problem.f32, "fp32", library);
  add_type(entries, problem.bf16, "bf16", library);
}

}  // namespace nibble::bench
