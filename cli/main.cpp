// The `nibble` program: chooses a command, runs it, turns errors into exit statuses.
#include <csignal>
#include <iostream>
#include <new>

#include "command.h"

namespace nibble::cli {
namespace {

constexpr Command kCommands[] = {{add_info},    {add_inspect},  {add_plan},     {add_quantize},   {add_dequantize},
                                 {add_convert}, {add_generate}, {add_tokenize}, {add_perplexity}, {add_bench},
                                 {add_chat},    {add_finetune}, {add_merge}};

/// First Ctrl-C: stop at a safe point and clean up. A second one ends the process at once.
void on_signal(int signal) {
  request_cancel();
  std::signal(signal, SIG_DFL);
}

int run(int argc, char** argv) {
  CLI::App app{"nibble: large language models in 4 and 8 bits.", "nibble"};
  app.set_version_flag("--version", std::string(version()));
  app.require_subcommand(1);
  app.fallthrough(false);
  Action action;
  for (const auto& command : kCommands) command.add(app, action);
  const auto is_named = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(is_named).empty())
    return report_error(ErrorCode::invalid_argument, fmt::format("unknown command '{}'; see nibble --help", argv[1]));
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return report_error(ErrorCode::invalid_argument, error.what());
  }
  const int status = action();
  std::cerr << profile_report();
  std::cout.flush();
  if (!std::cout) return report_error(ErrorCode::io, "standard output: cannot write");
  return status;
}

}  // namespace
}  // namespace nibble::cli

int main(int argc, char** argv) {
  using namespace nibble;
  std::ios::sync_with_stdio(false);
  std::signal(SIGINT, cli::on_signal);
  std::signal(SIGTERM, cli::on_signal);
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return cli::run(argc, argv);
  } catch (const Error& error) {
    return cli::report_error(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return cli::report_error(ErrorCode::out_of_memory, "out of memory");
  } catch (const std::exception& error) {
    return cli::report_error(ErrorCode::internal, error.what());
  }
}
