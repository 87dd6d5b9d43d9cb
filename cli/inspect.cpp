// nibble inspect: the module tree as transformers prints it, and the memory footprint, from config.json alone.
#include <iostream>

#include "command.h"

namespace nibble::cli {
namespace {

struct InspectArguments {
  std::string model;
  QuantizationArguments quantization;
  bool json = false;
};

Json to_json(const ModelSummary& summary) {
  Json modules = Json::array();
  for (const auto& module : summary.modules)
    modules.push_back({{"name", module.name},
                       {"class", module.class_name},
                       {"repr", module.repr},
                       {"dtype", module.dtype},
                       {"parameters", module.parameters},
                       {"size_bytes", module.size_bytes},
                       {"quantized", module.is_quantized}});
  return {{"memory_footprint_bytes", summary.memory_footprint_bytes},
          {"num_parameters", summary.num_parameters},
          {"statistics_bytes", summary.statistics_bytes},
          {"skipped_modules", summary.skipped_modules},
          {"tree", summary.tree},
          {"modules", modules}};
}

int run(const InspectArguments& arguments) {
  const ModelSummary summary =
      inspect(resolve_model(arguments.model), arguments.quantization.parsed(), arguments.quantization.parsed_dtype());
  if (arguments.json) {
    print_json(to_json(summary));
    return 0;
  }
  std::cout << summary.tree << "\n\n";
  std::cout << "parameters        " << summary.num_parameters << '\n';
  std::cout << "memory footprint  " << summary.memory_footprint_bytes << " bytes ("
            << human_size(summary.memory_footprint_bytes) << ")\n";
  if (summary.statistics_bytes > 0)
    std::cout << "statistics        " << summary.statistics_bytes << " bytes (" << human_size(summary.statistics_bytes)
              << "), not part of the footprint\n";
  if (!summary.skipped_modules.empty()) {
    std::cout << "not quantized    ";
    for (const auto& name : summary.skipped_modules) std::cout << ' ' << name;
    std::cout << '\n';
  }
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("inspect", "Module tree, types and memory footprint, from config.json alone");
  auto arguments = std::make_shared<InspectArguments>();
  command->add_option("MODEL", arguments->model, "Directory with config.json, a .gguf file, or a cached hub id")
      ->required();
  arguments->quantization.add_to(*command);
  command->add_flag("--json", arguments->json, "One JSON object instead of text");
  command->callback([&action, arguments] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace nibble::cli
