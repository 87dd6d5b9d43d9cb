// nibble generate: a prompt in, the prompt and its continuation out, as it is made.
#include <chrono>
#include <future>
#include <iostream>
#include <utility>

#include "base/error.h"
#include "command.h"

namespace nibble::cli {
namespace {

struct GenerateArguments {
  ModelArguments model;
  SamplingArguments sampling;
  std::string prompt;
  std::string file;
  CLI::Option* prompt_option = nullptr;
  bool json = false;
};

std::string prompt_text(const GenerateArguments& arguments) {
  const bool has_prompt = arguments.prompt_option->count() > 0;
  require(!(has_prompt && !arguments.file.empty()), "generate: --prompt and --file are both given, expected one");
  if (has_prompt) return arguments.prompt;
  return arguments.file.empty() ? read_standard_input() : read_text(arguments.file);
}

double rate(int64_t tokens, double seconds) { return seconds > 0 ? double(tokens) / seconds : 0.0; }

/// `load` makes the model; a sequence of its output starts with the prompt if `has_prompt`, else with one token.
template <typename Load>
int run_with(const GenerateArguments& arguments, const Load& load, bool has_prompt) {
  const auto begin = std::chrono::steady_clock::now();
  auto reading = std::async(std::launch::async,
                            [&] { return AutoTokenizer::from_pretrained(resolve_model(arguments.model.model)); });
  auto model = load();
  const AutoTokenizer tokenizer = reading.get();
  const double load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const std::string prompt = prompt_text(arguments);
  const std::vector<int32_t> ids = tokenizer(prompt);
  require(!ids.empty(), "generate: the prompt is empty");

  TokenCallback show;
  if (!arguments.json)  // the prompt too, but not before the options have been accepted
    show = [beginning = has_prompt ? tokenizer.decode(ids, {.skip_special_tokens = true}) : ""](
               int64_t, int32_t, std::string_view text) mutable {
      std::cout << std::exchange(beginning, {}) << text << std::flush;
      return bool(std::cout);
    };
  const GenerationOutput output =
      model.generate(ids, arguments.sampling.merged(model.generation_config()), &tokenizer, show);
  const GenerationTimes& times = output.times;
  const double prefill = rate(times.prompt_tokens, times.prefill_seconds);
  const double decode = rate(times.new_tokens - 1, times.decode_seconds);
  if (!arguments.json) {
    std::cout << '\n' << std::flush;
    std::cerr << fmt::format("[loaded in {:.2f} s, {}; prompt {} tokens at {:.0f}/s, {} new tokens at {:.1f}/s]\n",
                             load_seconds, human_size(model.get_memory_footprint()), times.prompt_tokens, prefill,
                             times.new_tokens, decode);
    return 0;
  }
  const std::vector<int32_t> fresh(output[0].begin() + static_cast<ptrdiff_t>(has_prompt ? ids.size() : 1),
                                   output[0].end());
  print_json({{"text", output.texts[0]},
              {"token_ids", fresh},
              {"prompt_token_ids", ids},
              {"full_text", tokenizer.decode(output[0], {.skip_special_tokens = true})},
              {"prompt_tokens", times.prompt_tokens},
              {"new_tokens", times.new_tokens},
              {"prefill_tokens_per_second", prefill},
              {"decode_tokens_per_second", decode},
              {"load_seconds", load_seconds},
              {"memory_footprint_bytes", model.get_memory_footprint()},
              {"peak_rss_bytes", peak_rss_bytes()}});
  return 0;
}

int run(const GenerateArguments& arguments) {
  const ModelArguments& model = arguments.model;
  arguments.sampling.merged({}).validate();  // before what may take long
  if (!is_encoder_decoder(model.model))
    return run_with(
        arguments, [&] { return model.load(); }, true);
  return run_with(
      arguments, [&] { return model.load_seq2seq(); }, false);
}

}  // namespace

void add_generate(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("generate", "Continue a text; with an encoder-decoder, answer it");
  auto arguments = std::make_shared<GenerateArguments>();
  arguments->model.add_to(*command);
  arguments->model.add_use_to(*command);
  arguments->prompt_option = command->add_option("-p,--prompt", arguments->prompt, "The text to continue");
  command->add_option("-f,--file", arguments->file, "A file with it; without either, standard input");
  arguments->sampling.add_to(*command, 20);
  command->add_flag("--json", arguments->json, "One JSON object instead of text");
  command->callback([&action, arguments] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace nibble::cli
