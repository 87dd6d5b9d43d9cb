// A safetensors file from bytes: header, then every tensor.
#include "checkpoint/checkpoint.h"
#include "fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  return expect_no_crash([&] {
    const auto checkpoint = Checkpoint::parse(bytes_of(data, size), "input");
    for (const auto& info : checkpoint->tensors())
      if (info.is_supported) touch(checkpoint->get(info.name).bytes());
  });
}
