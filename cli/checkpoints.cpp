// nibble quantize, dequantize, merge and convert: one checkpoint in, another out.
#include <iostream>

#include "command.h"

namespace nibble::cli {
namespace {

struct CheckpointArguments {
  std::string model;
  std::string out;
  QuantizationArguments quantization;
  std::string dtype = "bfloat16";
  std::string modules;
  std::string shard_size = "5GB";
  std::string device = "cpu";
  int threads = 0;
  bool json = false;
};

int print_report(const CheckpointReport& report, const CheckpointArguments& arguments) {
  if (arguments.json) {
    print_json({{"bytes_in", report.bytes_in},
                {"bytes_out", report.bytes_out},
                {"seconds", report.seconds},
                {"peak_rss_bytes", report.peak_rss_bytes},
                {"tensors", report.tensors},
                {"quantized_tensors", report.quantized_tensors}});
    return 0;
  }
  std::cout << fmt::format("{}: {} -> {} ({:.1f} %), {} tensors, {} quantized, {:.2f} s, peak memory {}\n",
                           arguments.out, human_size(report.bytes_in), human_size(report.bytes_out),
                           100.0 * double(report.bytes_out) / double(std::max<int64_t>(report.bytes_in, 1)),
                           report.tensors, report.quantized_tensors, report.seconds, human_size(report.peak_rss_bytes));
  return 0;
}

CLI::App* add_command(CLI::App& app, const char* name, const char* text, const char* input,
                      const std::shared_ptr<CheckpointArguments>& arguments) {
  auto* command = app.add_subcommand(name, text);
  command->add_option(input, arguments->model, "What to read")->required();
  command->add_option("OUT", arguments->out, "Directory to write; must not exist or be empty")->required();
  command->add_flag("--json", arguments->json, "One JSON object instead of text");
  return command;
}

}  // namespace

void add_quantize(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<CheckpointArguments>();
  auto* command =
      add_command(app, "quantize", "Write a quantized checkpoint that transformers loads", "MODEL", arguments);
  arguments->quantization.add_to(*command);
  command->add_option("--device", arguments->device, "What quantizes: cpu, cuda or cuda:N");
  command->add_option("--threads", arguments->threads, "CPU threads (0: all)");
  auto* modules = command->add_option("--modules", arguments->modules,
                                      "Quantize only modules whose whole names match this regular expression");
  command->add_option("--max-shard-size", arguments->shard_size,
                      "Split the weights into files of at most this size (5GB)");
  command->callback([&action, arguments, modules] {
    action = [arguments, modules] {
      QuantizeOptions options;
      options.quantization_config = arguments->quantization.parsed();
      options.dtype = arguments->quantization.parsed_dtype();
      if (modules->count() > 0) options.modules = arguments->modules;
      options.warning = print_warning;
      options.max_shard_size_bytes = parse_size(arguments->shard_size, "--max-shard-size");
      options.device = arguments->device;
      options.threads = arguments->threads;
      options.progress = progress_bar();
      return print_report(quantize_checkpoint(resolve_model(arguments->model), arguments->out, options), *arguments);
    };
  });
}

void add_dequantize(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<CheckpointArguments>();
  auto* command = add_command(app, "dequantize", "Write the weights of a quantized checkpoint in 16 or 32 bits",
                              "MODEL", arguments);
  command->add_option("--dtype", arguments->dtype, "bfloat16 (default), float16 or float32");
  command->add_option("--threads", arguments->threads, "CPU threads (0: all)");
  command->callback([&action, arguments] {
    action = [arguments] {
      return print_report(dequantize_checkpoint(resolve_model(arguments->model), arguments->out,
                                                dtype_from_name(arguments->dtype), arguments->threads, progress_bar()),
                          *arguments);
    };
  });
}

void add_merge(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<CheckpointArguments>();
  auto adapter = std::make_shared<std::string>();
  auto options = std::make_shared<MergeOptions>();
  auto* command = app.add_subcommand("merge", "Add a LoRA adapter to the weights of its model");
  command->add_option("MODEL", arguments->model, "What the adapter was trained on")->required();
  command->add_option("ADAPTER", *adapter, "Directory of a LoRA adapter, by PEFT or `nibble finetune`")->required();
  command->add_option("OUT", arguments->out, "Directory to write; must not exist or be empty")->required();
  auto* dtype = command->add_option("--dtype", arguments->dtype, "bfloat16, float16 or float32 (the model's own)");
  command->add_flag("--requantize", options->requantize,
                    "A quantized model stays so, with the loss of quantizing again; otherwise 16 bits are written");
  command->add_option("--max-shard-size", arguments->shard_size,
                      "Split the weights into files of at most this size (5GB)");
  command->add_option("--threads", options->threads, "CPU threads (0: all)");
  command->add_flag("--json", arguments->json, "One JSON object instead of text");
  command->callback([&action, arguments, adapter, options, dtype] {
    action = [arguments, adapter, options, dtype] {
      if (dtype->count() > 0) options->dtype = dtype_from_name(arguments->dtype);
      options->max_shard_size_bytes = parse_size(arguments->shard_size, "--max-shard-size");
      options->progress = progress_bar();
      return print_report(merge_checkpoint(resolve_model(arguments->model), *adapter, arguments->out, *options),
                          *arguments);
    };
  });
}

void add_convert(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<CheckpointArguments>();
  auto* command = add_command(app, "convert", "Turn a GGUF file into a Hugging Face directory", "IN.gguf", arguments);
  command->add_option("--dtype", arguments->dtype, "bfloat16 (default), float16 or float32");
  command->callback([&action, arguments] {
    action = [arguments] {
      return print_report(
          convert_gguf(arguments->model, arguments->out, dtype_from_name(arguments->dtype), progress_bar()),
          *arguments);
    };
  });
}

}  // namespace nibble::cli
