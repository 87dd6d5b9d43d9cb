// JSON text: parsing, look-ups, and writing back what was read.
#include "base/json.h"

#include "fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  return expect_no_crash([&] {
    const Json value = parse_json(text_of(data, size), "input");
    expect_no_crash([&] { (void)find_value<int64_t>(value, "hidden_size", "input"); });
    expect_no_crash([&] { (void)find_value<std::string>(value, "model_type", "input"); });
    expect_no_crash([&] { (void)find_value<double>(value, "rms_norm_eps", "input"); });
    const std::string text = dump_json(value);
    if (dump_json(parse_json(text, "written")) != text) __builtin_trap();
  });
}
