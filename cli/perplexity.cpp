// nibble perplexity: how well a model predicts a text.
#include <iostream>

#include "command.h"

namespace nibble::cli {
namespace {

struct PerplexityArguments {
  ModelArguments model;
  std::string file;
  int64_t context = 512;
  int64_t stride = 512;
  bool json = false;
};

int run(const PerplexityArguments& arguments) {
  const std::string text = read_text(arguments.file);
  AutoModelForCausalLM model = arguments.model.load();
  const AutoTokenizer tokenizer = AutoTokenizer::from_pretrained(resolve_model(arguments.model.model));
  const PerplexityResult result =
      model.perplexity(tokenizer(text), arguments.context, arguments.stride, progress_bar());
  if (arguments.json)
    print_json({{"perplexity", result.perplexity}, {"tokens", result.tokens}, {"mean_nll", result.mean_nll}});
  else
    std::cout << fmt::format("perplexity {:.4f} over {} tokens (context {}, stride {})\n", result.perplexity,
                             result.tokens, arguments.context, arguments.stride);
  return 0;
}

}  // namespace

void add_perplexity(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("perplexity", "Perplexity of a text under a model");
  auto arguments = std::make_shared<PerplexityArguments>();
  arguments->model.add_to(*command);
  arguments->model.add_use_to(*command);
  command->add_option("--file", arguments->file, "UTF-8 text; - for standard input")->required();
  command->add_option("--context", arguments->context, "Tokens a window (512)");
  command->add_option("--stride", arguments->stride, "Tokens between the starts of two windows (512)");
  command->add_flag("--json", arguments->json, "One JSON object instead of text");
  command->callback([&action, arguments] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace nibble::cli
