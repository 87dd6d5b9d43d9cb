// What every command shares: registration, the options that load a model, output and progress.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json.h"
#include "nibble/nibble.h"

namespace nibble::cli {

/// Set by the command that was chosen; main runs it inside the error handler and returns its status.
using Action = std::function<int()>;

/// One line of the list in main.cpp.
struct Command {
  void (*add)(CLI::App& app, Action& action);
};

void add_info(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_quantize(CLI::App& app, Action& action);
void add_dequantize(CLI::App& app, Action& action);
void add_merge(CLI::App& app, Action& action);
void add_convert(CLI::App& app, Action& action);
void add_generate(CLI::App& app, Action& action);
void add_tokenize(CLI::App& app, Action& action);
void add_perplexity(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);
void add_chat(CLI::App& app, Action& action);
void add_finetune(CLI::App& app, Action& action);

/// The quantization options, named as BitsAndBytesConfig's fields.
struct QuantizationArguments {
  BitsAndBytesConfig config;
  std::string compute_dtype = "float32";
  std::string quant_storage = "uint8";
  std::string threshold = "6.0";
  std::string skip_modules;
  std::string dtype = "auto";
  CLI::Option* skip_option = nullptr;
  std::vector<CLI::Option*> of_4bit, of_8bit;  // without effect unless that level is chosen

  void add_to(CLI::App& app);
  /// Checks and converts; warns of options that have no effect. Errors: invalid_argument naming the option.
  BitsAndBytesConfig parsed() const;
  std::optional<DType> parsed_dtype() const;
};

/// Everything that loading a model takes.
struct ModelArguments {
  std::string model;
  QuantizationArguments quantization;
  std::string device_map = "auto";
  std::string kv_cache_dtype = "auto";
  std::string max_memory;
  std::vector<std::string> adapters;  // DIR or NAME=DIR
  std::string active_adapter;
  int threads = 0;
  bool verbose = false;

  void add_to(CLI::App& app);
  /// For commands that run a model: its adapters and its cache.
  void add_use_to(CLI::App& app);
  LoadOptions load_options() const;
  AutoModelForCausalLM load(bool has_random_weights = false) const;
  AutoModelForSeq2SeqLM load_seq2seq() const;
};

/// Options of generate and chat that choose the next token.
struct SamplingArguments {
  GenerationConfig config;
  CLI::Option* do_sample = nullptr;
  std::vector<std::pair<CLI::Option*, std::function<void(GenerationConfig&)>>> given;

  template <typename T>
  void add_option(CLI::App& app, const char* name, T GenerationConfig::*member, const char* text) {
    auto* added = app.add_option(name, config.*member, text)->group("Generation (as transformers' generate)");
    given.emplace_back(added, [this, member](GenerationConfig& target) { target.*member = config.*member; });
  }

  void add_to(CLI::App& app, int64_t default_new_tokens);
  /// Those alone that choose from the logits.
  void add_choice_to(CLI::App& app);
  /// `defaults` come from the model's generation_config.json; what was typed wins.
  GenerationConfig merged(const GenerationConfig& defaults) const;
};

/// A bar on standard error while it is a terminal; silent otherwise.
Progress progress_bar();

/// A line on standard error.
void print_warning(std::string_view text);
void print_notice(std::string_view text);

/// One JSON object and a newline on standard output.
void print_json(const Json& object);

/// "16GiB", "12GB", "500MB", "1024": bytes. Errors: invalid_argument naming `option`.
int64_t parse_size(const std::string& text, const std::string& option);

/// "1.53 GB": for people.
std::string human_size(int64_t bytes);

/// Standard input or a file as text. Errors: not_found, io.
std::string read_text(const std::string& path);
std::string read_standard_input();

/// A comma-separated list; empty text is an empty list.
std::vector<std::string> split_list(const std::string& text);

/// Modules that an adapter targets: a list, or what holds signs that no module name has: a regular expression.
std::variant<std::vector<std::string>, std::string> parse_modules(const std::string& text);

/// Writes the last line of standard error and returns the exit status that docs/cli.md promises for `code`.
int report_error(ErrorCode code, const std::string& message);

}  // namespace nibble::cli
