// nibble plan: how much memory a model needs at each level, and what fits.
#include <cmath>
#include <iostream>

#include "base/error.h"
#include "command.h"

namespace nibble::cli {
namespace {

struct PlanArguments {
  std::string model;
  std::string parameters;
  std::string memory;
  QuantizationArguments quantization;
  PlanOptions options;
  bool json = false;
};

/// "7B", "350M", "135000000".
int64_t parse_parameters(const std::string& text) {
  size_t used = 0;
  double number = -1;
  try {
    number = std::stod(text, &used);
  } catch (const std::exception&) {
  }
  const std::string unit = text.substr(std::min(used, text.size()));
  const double factor = unit.empty()  ? 1
                        : unit == "K" ? 1e3
                        : unit == "M" ? 1e6
                        : unit == "B" ? 1e9
                        : unit == "T" ? 1e12
                                      : 0;
  if (!(number > 0) || factor == 0 || number * factor > 1e15)
    fail(ErrorCode::invalid_argument, "--params: found '{}', expected a count such as 7B or 350M", text);
  return std::llround(number * factor);
}

int run(const PlanArguments& arguments) {
  PlanOptions options = arguments.options;
  options.quantization_config = arguments.quantization.parsed();
  options.dtype = arguments.quantization.parsed_dtype();
  if (!arguments.memory.empty()) options.memory_bytes = parse_size(arguments.memory, "--vram");
  require(arguments.model.empty() != arguments.parameters.empty(), "plan: expected either MODEL or --params");
  const Plan result = arguments.parameters.empty() ? plan(resolve_model(arguments.model), options)
                                                   : plan(parse_parameters(arguments.parameters), options);
  if (arguments.json) {
    Json levels = Json::array();
    for (const auto& row : result.levels)
      levels.push_back({{"level", row.level},
                        {"weights_bytes", row.weights_bytes},
                        {"total_bytes", row.total_bytes},
                        {"fits", row.fits}});
    print_json({{"weights_bytes", result.weights_bytes},
                {"kv_cache_bytes", result.kv_cache_bytes},
                {"activation_bytes", result.activation_bytes},
                {"total_bytes", result.total_bytes},
                {"available_bytes", result.available_bytes},
                {"fits", result.fits},
                {"levels", levels}});
    return 0;
  }
  std::cout << fmt::format(
      "weights      {:>10}\nKV cache     {:>10}  ({} sequences of {} tokens)\nactivations  {:>10}\n",
      human_size(result.weights_bytes), human_size(result.kv_cache_bytes), options.batch_size, options.context,
      human_size(result.activation_bytes));
  std::cout << fmt::format("total        {:>10}  {} into {}\n\n", human_size(result.total_bytes),
                           result.fits ? "fits" : "does not fit", human_size(result.available_bytes));
  for (const auto& row : result.levels)
    std::cout << fmt::format("  {:<24} weights {:>10}  total {:>10}  {}\n", row.level, human_size(row.weights_bytes),
                             human_size(row.total_bytes), row.fits ? "fits" : "does not fit");
  return 0;
}

}  // namespace

void add_plan(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("plan", "Memory that a model needs, and what fits");
  auto arguments = std::make_shared<PlanArguments>();
  command->add_option("MODEL", arguments->model, "Directory with config.json, a .gguf file, or a cached hub id");
  command->add_option("--params", arguments->parameters, "Instead of MODEL: a parameter count such as 7B");
  command->add_option("--vram,--memory", arguments->memory,
                      "What it must fit, such as 16GiB (default: this machine's free memory)");
  command->add_option("--context", arguments->options.context, "Tokens a sequence (2048)");
  command->add_option("--batch-size", arguments->options.batch_size, "Sequences (1)");
  arguments->quantization.add_to(*command);
  command->add_flag("--json", arguments->json, "One JSON object instead of text");
  command->callback([&action, arguments] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace nibble::cli
