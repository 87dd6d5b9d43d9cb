// Chat templates come from strangers: any text parses or is refused, and rendering it ends within its limits.
#include "fuzz_target.h"
#include "tokenizer/jinja_ast.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  static const Json context = parse_json(R"({
    "messages": [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "Gr\u00fc\u00dfe \ud83d\ude42"},
                 {"role": "assistant", "content": null,
                  "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": [1, 2.5, true]}}}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": ["array"]}}}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "n": 7, "f": -0.5, "nothing": null})",
                                         "context");
  return expect_no_crash([&] {
    const jinja::Body body = jinja::parse_template(text_of(data, size));
    jinja::render_template(body, context, {.steps = 20'000, .bytes = 4 << 20});
  });
}
