// Prints a model's logits as raw fp32: logits [--adapter=DIR] MODEL DTYPE ID... (all positions, row-major). With an
// encoder-decoder the ids are the source, and after its first token the target as well.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>

#include "nibble/nibble.h"

int main(int argc, char** argv) {
  constexpr std::string_view kAdapter = "--adapter=";
  std::string adapter;
  if (argc > 1 && std::string_view(argv[1]).starts_with(kAdapter)) {
    adapter = argv[1] + kAdapter.size();
    --argc;
    ++argv;
  }
  if (argc < 4) {
    std::cerr << "usage: logits [--adapter=DIR] MODEL DTYPE ID...\n";
    return 2;
  }
  try {
    nibble::LoadOptions options;
    options.dtype = nibble::dtype_from_name(argv[2]);
    std::vector<int32_t> ids;
    for (int i = 3; i < argc; ++i) ids.push_back(std::atoi(argv[i]));
    std::vector<float> logits;
    if (nibble::is_encoder_decoder(argv[1])) {
      auto model = nibble::AutoModelForSeq2SeqLM::from_pretrained(argv[1], options);
      std::vector<int32_t> target{model.decoder_start_token_id()};
      target.insert(target.end(), ids.begin(), ids.end());
      logits = model.logits(ids, target);
    } else {
      auto model = nibble::AutoModelForCausalLM::from_pretrained(argv[1], options);
      if (!adapter.empty()) {
        model.load_adapter(adapter);
        model.set_adapter("default");
      }
      logits = model.logits(ids);
    }
    return std::fwrite(logits.data(), sizeof(float), logits.size(), stdout) == logits.size() ? 0 : 1;
  } catch (const nibble::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
