// A tokenizer.json or tekken.json from bytes, then a short text there and back.
#include "tokenizer/tokenizer_json.h"

#include <string_view>

#include "fuzz_target.h"
#include "tokenizer/incremental_decoder.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/tiktoken.h"

namespace {

void run(nibble::PipelineSteps steps) {
  using namespace nibble;
  const Pipeline tokenizer(std::move(steps));
  for (const std::string_view text : {"Hello  <s> w\xC3\xB6rld's 123\n\xE4\xBD\xA0\xE2\x96\x81", "a\xFF b\t "}) {
    expect_no_crash([&] {
      const auto ids = tokenizer.encode(text, {});
      IncrementalDecoder decoder(tokenizer, {});
      std::string joined;
      for (const int32_t id : ids) joined += decoder.push(id);
      joined += decoder.finish();
      if (joined != tokenizer.decode(ids, {})) __builtin_trap();
    });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  expect_no_crash([&] { run(read_tekken(text, "input")); });
  return expect_no_crash([&] { run(read_tokenizer_json(text, "input", {})); });
}
