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
  bool train = false, has_no_bf16 = false;
  TrainingPlanOptions training;
  std::string targets = "all-linear", gpu_memory;
  std::vector<CLI::Option*> training_options, inference_options;
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

void print_training(const TrainingPlan& plan, const TrainingPlanOptions& options) {
  const auto row = [](const char* what, int64_t bytes, const std::string& note = "") {
    std::cout << fmt::format("{:<18} {:>10}{}\n", what, human_size(bytes), note.empty() ? "" : "  (" + note + ")");
  };
  row("weights", plan.weights_bytes);
  row("adapter", plan.adapter_bytes, fmt::format("rank {}, fp32", options.lora.r));
  row("gradients", plan.gradient_bytes);
  row("optimizer", plan.optimizer_bytes, options.optim);
  row("kept activations", plan.kept_bytes,
      fmt::format("{} x {} tokens{}", options.per_device_train_batch_size, options.max_length,
                  options.activation_offloading    ? ", offloaded"
                  : options.gradient_checkpointing ? ", checkpointing"
                                                   : ""));
  row("working set", plan.working_bytes);
  row(options.is_gpu ? "GPU workspace" : "program", plan.workspace_bytes);
  std::cout << fmt::format("{:<18} {:>10}  {} into {}\n", "total", human_size(plan.total_bytes),
                           plan.fits ? "fits" : "does not fit", human_size(plan.available_bytes));
  if (plan.host_bytes > 0) row("main memory", plan.host_bytes);
  if (!plan.ways.empty()) std::cout << "\nless memory:\n";
  for (const TrainingPlanWay& way : plan.ways)
    std::cout << fmt::format("  {:>10}  {:<12}  {}\n", human_size(way.total_bytes), way.fits ? "fits" : "does not fit",
                             way.change);
}

Json training_json(const TrainingPlan& plan) {
  Json ways = Json::array();
  for (const TrainingPlanWay& way : plan.ways)
    ways.push_back({{"change", way.change}, {"total_bytes", way.total_bytes}, {"fits", way.fits}});
  return {{"weights_bytes", plan.weights_bytes},
          {"adapter_bytes", plan.adapter_bytes},
          {"gradient_bytes", plan.gradient_bytes},
          {"optimizer_bytes", plan.optimizer_bytes},
          {"host_bytes", plan.host_bytes},
          {"kept_bytes", plan.kept_bytes},
          {"working_bytes", plan.working_bytes},
          {"workspace_bytes", plan.workspace_bytes},
          {"total_bytes", plan.total_bytes},
          {"available_bytes", plan.available_bytes},
          {"fits", plan.fits},
          {"ways", ways}};
}

int run_training(const PlanArguments& arguments) {
  TrainingPlanOptions options = arguments.training;
  options.quantization_config = arguments.quantization.parsed();
  options.dtype = arguments.quantization.parsed_dtype();
  options.lora.target_modules = parse_modules(arguments.targets);
  options.is_gpu = !arguments.gpu_memory.empty();
  options.has_bf16 = !arguments.has_no_bf16;
  if (options.is_gpu)
    options.memory_bytes = parse_size(arguments.gpu_memory, "--vram");
  else if (!arguments.memory.empty())
    options.memory_bytes = parse_size(arguments.memory, "--memory");
  const TrainingPlan plan = arguments.parameters.empty()
                                ? plan_training(resolve_model(arguments.model), options)
                                : plan_training(parse_parameters(arguments.parameters), options);
  if (arguments.json)
    print_json(training_json(plan));
  else
    print_training(plan, options);
  return 0;
}

int run(const PlanArguments& arguments) {
  require(arguments.model.empty() != arguments.parameters.empty(), "plan: expected either MODEL or --params");
  for (const CLI::Option* option : arguments.train ? arguments.inference_options : arguments.training_options)
    require(option->count() == 0, "{}: found it {} --train, where it has no meaning", option->get_name(),
            arguments.train ? "with" : "without");
  if (arguments.train) return run_training(arguments);
  PlanOptions options = arguments.options;
  options.quantization_config = arguments.quantization.parsed();
  options.dtype = arguments.quantization.parsed_dtype();
  for (const std::string& memory : {arguments.gpu_memory, arguments.memory})
    if (!memory.empty()) options.memory_bytes = parse_size(memory, "--vram");
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

void add_training(CLI::App& command, PlanArguments& arguments) {
  const char* group = "Training (as finetune's options)";
  TrainingPlanOptions& training = arguments.training;
  training.lora.r = 16;
  command.add_flag("--train", arguments.train, "Memory of a LoRA fine-tuning run")->group(group);
  const auto before = command.get_options();
  command.add_option("--r", training.lora.r, "Rank (16)")->group(group);
  command.add_option("--target-modules", arguments.targets, "A,B, a regular expression, or all-linear (default)")
      ->group(group);
  command.add_option("--optim", training.optim, "adamw_torch (default), adamw_8bit, paged_adamw_8bit, ...")
      ->group(group);
  command.add_option("--max-length", training.max_length, "Tokens of each sample (1024)")->group(group);
  command.add_option("--per-device-train-batch-size", training.per_device_train_batch_size, "Samples (8)")
      ->group(group);
  command.add_flag("--gradient-checkpointing", training.gradient_checkpointing, "Keep one activation a layer")
      ->group(group);
  command.add_flag("--activation-offloading", training.activation_offloading, "With --vram: it waits in main memory")
      ->group(group);
  command.add_flag("--no-bf16", arguments.has_no_bf16, "With --vram: a GPU before compute capability 8.0")
      ->group(group);
  arguments.training_options = command.get_options(
      [&](const CLI::Option* option) { return std::find(before.begin(), before.end(), option) == before.end(); });
}

}  // namespace

void add_plan(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("plan", "Memory that a model needs, and what fits");
  auto arguments = std::make_shared<PlanArguments>();
  command->add_option("MODEL", arguments->model, "Directory with config.json, a .gguf file, or a cached hub id");
  command->add_option("--params", arguments->parameters, "Instead of MODEL: a parameter count such as 7B");
  command->add_option("--vram", arguments->gpu_memory, "A GPU's memory that it must fit, such as 16GiB");
  command->add_option("--memory", arguments->memory, "Main memory that it must fit (default: what is free here)");
  arguments->inference_options = {
      command->add_option("--context", arguments->options.context, "Tokens a sequence (2048)"),
      command->add_option("--batch-size", arguments->options.batch_size, "Sequences (1)")};
  arguments->quantization.add_to(*command);
  add_training(*command, *arguments);
  command->add_flag("--json", arguments->json, "One JSON object instead of text");
  command->callback([&action, arguments] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace nibble::cli
