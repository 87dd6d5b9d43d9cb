// nibble chat: a conversation, one user turn a line, with the model's own chat template.
#include <unistd.h>

#include <iostream>

#include "base/error.h"
#include "command.h"

namespace nibble::cli {
namespace {

struct ChatArguments {
  ModelArguments model;
  SamplingArguments sampling;
  std::string system;
};

/// From here on the adapter of that name answers; without a name, the model alone.
void switch_adapter(AutoModelForCausalLM& model, const std::string& name) {
  try {
    if (name.empty())
      model.disable_adapter();
    else
      model.set_adapter(name);
  } catch (const Error& error) {
    print_warning(error.what());
  }
}

int run(const ChatArguments& arguments) {
  const AutoTokenizer tokenizer = AutoTokenizer::from_pretrained(resolve_model(arguments.model.model));
  if (!tokenizer.has_chat_template())
    fail(ErrorCode::not_found,
         "{}: no chat template in tokenizer_config.json or chat_template.jinja; use 'nibble generate'",
         arguments.model.model);
  arguments.sampling.merged({}).validate();  // before what may take long
  AutoModelForCausalLM model = arguments.model.load();
  const GenerationConfig config = arguments.sampling.merged(model.generation_config());
  const bool is_terminal = isatty(STDIN_FILENO) != 0;
  std::vector<ChatMessage> messages;
  if (!arguments.system.empty()) messages.push_back({"system", arguments.system});
  if (is_terminal) std::cerr << "Type a message; an empty line or Ctrl-D ends.\n";
  std::string line;
  while (true) {
    if (is_terminal) std::cerr << "> " << std::flush;
    if (!std::getline(std::cin, line) || line.empty()) break;
    constexpr std::string_view kSwitch = "/adapter";
    if (line == kSwitch || line.starts_with(std::string(kSwitch) + " ")) {
      switch_adapter(model, line == kSwitch ? "" : line.substr(kSwitch.size() + 1));
      continue;
    }
    messages.push_back({"user", line});
    const auto ids = tokenizer.encode(tokenizer.apply_chat_template(messages), {.add_special_tokens = false});
    const auto output = model.generate(ids, config, &tokenizer, [](int64_t, int32_t, std::string_view text) {
      std::cout << text << std::flush;
      return bool(std::cout);
    });
    std::cout << '\n' << std::flush;
    messages.push_back({"assistant", output.texts[0]});
  }
  return 0;
}

}  // namespace

void add_chat(CLI::App& app, Action& action) {
  auto* command =
      app.add_subcommand("chat", "A conversation; reads one user turn a line when standard input is no terminal");
  auto arguments = std::make_shared<ChatArguments>();
  arguments->model.add_to(*command);
  arguments->model.add_use_to(*command);
  command->add_option("--system", arguments->system, "What the system message says");
  arguments->sampling.add_to(*command, 512);
  command->callback([&action, arguments] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace nibble::cli
