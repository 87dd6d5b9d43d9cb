// nibble tokenize: lines of text to lines of ids, and back.
#include <charconv>
#include <iostream>

#include "base/error.h"
#include "command.h"

namespace nibble::cli {
namespace {

struct TokenizeArguments {
  std::string model;
  bool decode = false;
  bool keep_special = true;
  bool add_special = true;
};

std::vector<int32_t> parse_ids(const std::string& line, int64_t number) {
  std::vector<int32_t> ids;
  const char* at = line.data();
  const char* end = at + line.size();
  while (at < end) {
    if (*at == ' ' || *at == '\t' || *at == ',') {
      ++at;
      continue;
    }
    int32_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc{})
      fail(ErrorCode::invalid_argument, "standard input, line {}: expected token ids, found '{}'", number, line);
    ids.push_back(id);
    at = next;
  }
  return ids;
}

int run(const TokenizeArguments& arguments) {
  const AutoTokenizer tokenizer = AutoTokenizer::from_pretrained(resolve_model(arguments.model));
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (arguments.decode) {
      std::cout << tokenizer.decode(parse_ids(line, number), {.skip_special_tokens = !arguments.keep_special}) << '\n';
      continue;
    }
    const char* separator = "";
    for (const int32_t id : tokenizer.encode(line, {.add_special_tokens = arguments.add_special})) {
      std::cout << separator << id;
      separator = " ";
    }
    std::cout << '\n';
  }
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("tokenize", "Standard input to token ids, one line of ids a line; --decode back");
  auto arguments = std::make_shared<TokenizeArguments>();
  command->add_option("MODEL", arguments->model, "Directory with tokenizer.json or tokenizer.model, or such a file")
      ->required();
  command->add_flag("--decode", arguments->decode, "Lines of ids to text");
  command->add_flag("--skip-special-tokens{false}", arguments->keep_special, "With --decode: leave special tokens out");
  command->add_flag("--no-special-tokens{false}", arguments->add_special, "Do not add the tokenizer's special tokens");
  command->callback([&action, arguments] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace nibble::cli
