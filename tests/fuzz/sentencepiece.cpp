// A SentencePiece model from bytes, then a short text there and back.
#include "tokenizer/sentencepiece.h"

#include <string_view>

#include "fuzz_target.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/tiktoken.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  expect_no_crash([&] { (void)read_tiktoken(bytes, "input"); });
  return expect_no_crash([&] {
    const Pipeline tokenizer(read_sentencepiece(bytes, {}, "input"));
    for (const std::string_view text : {"Hello  <s> w\xC3\xB6rld's 123\n\xE4\xBD\xA0\xE2\x96\x81", "a\xFF b\t "})
      expect_no_crash([&] { (void)tokenizer.decode(tokenizer.encode(text, {}), {}); });
  });
}
