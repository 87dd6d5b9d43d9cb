// Loads a model in 4-bit and continues a prompt: generate MODEL ["PROMPT"]
#include <nibble/nibble.h>
#include <iostream>

using namespace nibble;

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: generate MODEL [PROMPT]\n";
    return 2;
  }
  try {
    auto model = AutoModelForCausalLM::from_pretrained(
        argv[1], {.quantization_config = {.load_in_4bit = true, .bnb_4bit_quant_type = "nf4"}, .device_map = "auto"});
    const auto tokenizer = AutoTokenizer::from_pretrained(argv[1]);

    const auto prompt = tokenizer(argc > 2 ? argv[2] : "Hello my name is");
    const auto out = model.generate(prompt, {.max_new_tokens = 20});
    std::cout << tokenizer.decode(out[0], {.skip_special_tokens = true}) << '\n';
    std::cerr << model.get_memory_footprint() / 1e6 << " MB of weights\n";
  } catch (const Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
