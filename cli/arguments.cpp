// The options that several commands share, under the names users know from transformers.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "base/error.h"
#include "command.h"

namespace nibble::cli {

void QuantizationArguments::add_to(CLI::App& app) {
  const char* group = "Quantization (as BitsAndBytesConfig)";
  app.add_flag("--load-in-4bit", config.load_in_4bit, "Linear weights in 4 bits")->group(group);
  app.add_flag("--load-in-8bit", config.load_in_8bit, "Linear weights in 8 bits: LLM.int8()")->group(group);
  of_4bit = {
      app.add_option("--bnb-4bit-quant-type", config.bnb_4bit_quant_type, "fp4 (default) or nf4"),
      app.add_flag("--bnb-4bit-use-double-quant", config.bnb_4bit_use_double_quant, "Quantize the statistics too"),
      app.add_option("--bnb-4bit-compute-dtype", compute_dtype, "float32 (default), bfloat16 or float16"),
      app.add_option("--bnb-4bit-quant-storage", quant_storage, "Type that holds the packed codes in files"),
      app.add_option("--bnb-4bit-blocksize", config.bnb_4bit_blocksize, "Values that share one scale: 32 to 4096 (64)"),
  };
  of_8bit = {
      app.add_option("--llm-int8-threshold", threshold, "Activations from here on stay in 16 bits (6.0; 0: none)")};
  for (const auto& options : {of_4bit, of_8bit})
    for (CLI::Option* option : options) option->group(group);
  skip_option = app.add_option("--llm-int8-skip-modules", skip_modules,
                               "Modules that stay unquantized, comma-separated; replaces the default (the output head)")
                    ->group(group);
  app.add_option("--dtype", dtype, "Of what is not quantized: auto (the checkpoint's), float32, float16, bfloat16")
      ->group(group);
}

namespace {

DType parse_dtype(const std::string& text, const char* option) {
  try {
    return dtype_from_name(text);
  } catch (const Error&) {
    fail(ErrorCode::invalid_argument, "{}: found '{}', expected float32, float16 or bfloat16", option, text);
  }
}

void warn_if_given(const std::vector<CLI::Option*>& options, const char* level) {
  for (const CLI::Option* option : options)
    if (option->count() > 0) print_warning(fmt::format("{} has no effect without {}", option->get_name(), level));
}

}  // namespace

BitsAndBytesConfig QuantizationArguments::parsed() const {
  BitsAndBytesConfig result = config;
  result.bnb_4bit_compute_dtype = parse_dtype(compute_dtype, "--bnb-4bit-compute-dtype");
  result.bnb_4bit_quant_storage = parse_dtype(quant_storage, "--bnb-4bit-quant-storage");
  char* end = nullptr;
  result.llm_int8_threshold = std::strtod(threshold.c_str(), &end);
  if (threshold.empty() || *end != '\0' || !std::isfinite(result.llm_int8_threshold) || result.llm_int8_threshold < 0)
    fail(ErrorCode::invalid_argument, "--llm-int8-threshold: found '{}', expected a number of 0 or more", threshold);
  if (skip_option && skip_option->count() > 0) result.llm_int8_skip_modules = split_list(skip_modules);
  result.validate();
  if (!result.load_in_4bit) warn_if_given(of_4bit, "--load-in-4bit");
  if (!result.load_in_8bit) warn_if_given(of_8bit, "--load-in-8bit");
  return result;
}

std::optional<DType> QuantizationArguments::parsed_dtype() const {
  if (dtype == "auto") return std::nullopt;
  const DType parsed = parse_dtype(dtype, "--dtype");
  require(parsed == DType::f32 || parsed == DType::f16 || parsed == DType::bf16,
          "--dtype: found '{}', expected auto, float32, float16 or bfloat16", dtype);
  return parsed;
}

void ModelArguments::add_to(CLI::App& app) {
  app.add_option("MODEL", model, "Directory with config.json and *.safetensors, a .gguf file, or a cached hub id")
      ->required();
  quantization.add_to(app);
  app.add_option("--device,--device-map", device_map,
                 "auto (a GPU with room for the model, else the CPU), cpu, cuda or cuda:N")
      ->group("Placement");
  app.add_option("--max-memory", max_memory, "Most that may be taken from the GPU, such as 16GB")->group("Placement");
  app.add_option("--threads", threads, "CPU threads (0: all)")->group("Placement");
  app.add_flag("--verbose", verbose, "Say on standard error what auto chose, and why")->group("Placement");
}

void ModelArguments::add_use_to(CLI::App& app) {
  app.add_option("--kv-cache-dtype", kv_cache_dtype, "Keys and values: auto (as the model), or int8 on a GPU")
      ->group("Placement");
  app.add_option("--adapter", adapters,
                 "DIR or NAME=DIR: a LoRA adapter, by PEFT or `nibble finetune`; repeatable, the first is applied");
  app.add_option("--active-adapter", active_adapter, "NAME of the --adapter to apply instead");
}

LoadOptions ModelArguments::load_options() const {
  LoadOptions options;
  options.quantization_config = quantization.parsed();
  options.dtype = quantization.parsed_dtype();
  options.device_map = device_map;
  options.kv_cache_dtype = kv_cache_dtype;
  if (!max_memory.empty()) options.max_memory = parse_size(max_memory, "--max-memory");
  options.threads = threads;
  options.progress = progress_bar();
  options.warning = print_warning;
  if (verbose) options.notice = print_notice;
  return options;
}

namespace {

/// Every adapter by its name, the chosen one applied. One without a name is "default".
template <typename Model>
Model with_adapters(Model model, const ModelArguments& arguments) {
  std::string first;
  for (const std::string& text : arguments.adapters) {
    const size_t equals = std::filesystem::exists(text) ? std::string::npos : text.find('=');
    const std::string name = equals == std::string::npos ? "default" : text.substr(0, equals);
    model.load_adapter(equals == std::string::npos ? text : text.substr(equals + 1), name);
    if (first.empty()) first = name;
  }
  const std::string& active = arguments.active_adapter.empty() ? first : arguments.active_adapter;
  if (!active.empty()) model.set_adapter(active);
  return model;
}

}  // namespace

AutoModelForCausalLM ModelArguments::load(bool has_random_weights) const {
  LoadOptions options = load_options();
  options.random_weights = has_random_weights;
  return with_adapters(AutoModelForCausalLM::from_pretrained(resolve_model(model), options), *this);
}

AutoModelForSeq2SeqLM ModelArguments::load_seq2seq() const {
  return with_adapters(AutoModelForSeq2SeqLM::from_pretrained(resolve_model(model), load_options()), *this);
}

void SamplingArguments::add_choice_to(CLI::App& app) {
  using Config = GenerationConfig;
  add_option(app, "--temperature", &Config::temperature, "With --do-sample: below 1 sharpens, above 1 flattens");
  add_option(app, "--top-k", &Config::top_k, "With --do-sample: the k most likely tokens only (50; 0: all)");
  add_option(app, "--top-p", &Config::top_p, "With --do-sample: the most likely tokens up to this mass");
  add_option(app, "--min-p", &Config::min_p,
             "With --do-sample: tokens of at least this share of the best one's probability");
  add_option(app, "--repetition-penalty", &Config::repetition_penalty,
             "Above 1: tokens that occurred become less likely");
  add_option(app, "--seed", &Config::seed, "Of the random numbers of --do-sample");
  do_sample = app.add_flag("--do-sample,!--no-do-sample", config.do_sample, "Draw from the distribution")
                  ->group("Generation (as transformers' generate)");
  given.emplace_back(do_sample, [this](Config& target) { target.do_sample = config.do_sample; });
  auto* invariant = app.add_flag("--batch-invariant", config.batch_invariant, "The same bits whatever the batch size")
                        ->group("Generation (as transformers' generate)");
  given.emplace_back(invariant, [this](Config& target) { target.batch_invariant = config.batch_invariant; });
}

void SamplingArguments::add_to(CLI::App& app, int64_t default_new_tokens) {
  using Config = GenerationConfig;
  config.max_new_tokens = default_new_tokens;
  const char* group = "Generation (as transformers' generate)";
  add_option(app, "--max-new-tokens", &Config::max_new_tokens, "How many tokens to add");
  add_choice_to(app);
  add_option(app, "--num-beams", &Config::num_beams, "Beam search over this many hypotheses");
  add_option(app, "--length-penalty", &Config::length_penalty, "With beams: above 0 favours longer texts");
  add_option(app, "--stop", &Config::stop, "End where this text appears (repeatable)");
  auto* early = app.add_flag("--early-stopping", config.early_stopping, "With beams: stop at num-beams finished texts")
                    ->group(group);
  given.emplace_back(early, [this](GenerationConfig& target) { target.early_stopping = config.early_stopping; });
}

GenerationConfig SamplingArguments::merged(const GenerationConfig& defaults) const {
  GenerationConfig result = defaults;
  result.max_new_tokens = config.max_new_tokens;
  result.seed = config.seed;
  for (const auto& [option, copy] : given)
    if (option->count() > 0) copy(result);
  return result;
}

std::variant<std::vector<std::string>, std::string> parse_modules(const std::string& text) {
  if (text == "all-linear" || text.find_first_of("*+?()[]{}|\\^$") != std::string::npos) return text;
  return split_list(text);
}

}  // namespace nibble::cli
