// A GGUF file from bytes: metadata, every tensor decoded, and all that a conversion would write.
#include "checkpoint/gguf.h"

#include "checkpoint/gguf_config.h"
#include "checkpoint/gguf_convert.h"
#include "checkpoint/gguf_tokenizer.h"
#include "fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  return expect_no_crash([&] {
    const auto file = GgufFile::parse(bytes_of(data, size), "input");
    for (const auto& tensor : file->tensors())
      expect_no_crash([&] { touch(file->decode(tensor, DType::bf16).bytes()); });
    expect_no_crash([&] { (void)gguf_config(*file, DType::bf16).dump(); });
    expect_no_crash([&] { (void)gguf_generation_config(*file).dump(); });
    expect_no_crash([&] { (void)parse_json(gguf_tokenizer_json(*file), "tokenizer.json"); });
    expect_no_crash([&] { (void)gguf_tokenizer_config(*file).dump(-1, ' ', false, Json::error_handler_t::replace); });
    const auto checkpoint = gguf_checkpoint(file, DType::f32);
    for (const auto& info : checkpoint->tensors()) expect_no_crash([&] { touch(checkpoint->get(info.name).bytes()); });
  });
}
