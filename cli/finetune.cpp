// nibble finetune: LoRA over a frozen model, QLoRA if that is quantized; or the whole model.
#include <unistd.h>

#include <iostream>

#include "command.h"

namespace nibble::cli {
namespace {

struct FinetuneArguments {
  ModelArguments model;
  LoraConfig lora{.r = 16, .lora_alpha = 32, .lora_dropout = 0.05};
  TrainingArguments training;
  DatasetOptions dataset;
  std::string data, eval_data, output, targets = "all-linear", excluded, layers, resume;
  std::string saved_modules;
  std::vector<std::string> ranks, alphas;
  bool completion_only = false, all_tokens = false, is_full = false;
  CLI::Option* resume_option = nullptr;
  std::vector<CLI::Option*> lora_options;
  bool json = false;
};

/// The last line of a terminal, drawn again after every step.
void draw_bar(const TrainingProgress& now) {
  constexpr size_t kWidth = 24;
  const auto filled =
      static_cast<size_t>(now.step * static_cast<int64_t>(kWidth) / std::max<int64_t>(1, now.total_steps));
  std::cerr << fmt::format("\r[{}{}] {}/{}  loss {:.4f}  {:.0f} tokens/s  {}\033[K",
                           std::string(std::min(filled, kWidth), '#'),
                           std::string(kWidth - std::min(filled, kWidth), ' '), now.step, now.total_steps, now.loss,
                           now.tokens_per_second, human_size(now.peak_memory_bytes));
  std::cerr.flush();
}

void print_progress(const TrainingProgress& now, bool is_terminal) {
  if (now.eval_loss) {
    std::cerr << fmt::format("{}step {}/{}  eval loss {:.4f}  perplexity {:.2f}\n", is_terminal ? "\r\033[K" : "",
                             now.step, now.total_steps, *now.eval_loss, std::exp(*now.eval_loss));
    return;
  }
  std::cerr << fmt::format(
      "{}step {}/{}  epoch {:.2f}  loss {:.4f}  lr {:.2e}  grad norm {:.3f}  {:.0f} tokens/s  {}\n",
      is_terminal ? "\r\033[K" : "", now.step, now.total_steps, now.epoch, now.loss, now.learning_rate, now.grad_norm,
      now.tokens_per_second, human_size(now.peak_memory_bytes));
}

void print_counts(const char* what, const Dataset& dataset) {
  std::cerr << fmt::format("{}: {} samples, {} tokens", what, dataset.samples.size(), dataset.token_count());
  if (dataset.shortened > 0) std::cerr << fmt::format(", {} shortened", dataset.shortened);
  if (dataset.dropped > 0) std::cerr << fmt::format(", {} dropped", dataset.dropped);
  std::cerr << '\n';
}

/// Reads the data, then trains what `load` gives.
template <typename Load>
TrainingReport train(const FinetuneArguments& arguments, const Load& load) {
  const std::filesystem::path path = resolve_model(arguments.model.model);
  const AutoTokenizer tokenizer = AutoTokenizer::from_pretrained(path);
  DatasetOptions options = arguments.dataset;
  options.max_length = std::min(options.max_length, inspect(path).max_position_embeddings);
  Dataset train = Dataset::from_jsonl(arguments.data, tokenizer, options);
  print_counts("training data", train);
  std::optional<Dataset> evaluation;
  if (!arguments.eval_data.empty()) {
    evaluation = Dataset::from_jsonl(arguments.eval_data, tokenizer, options);
    print_counts("evaluation data", *evaluation);
  }
  auto&& model = load();
  if (model.hf_device_map().at("") != "cpu" && cublas_lt_version().empty())
    print_warning("cuBLASLt (libcublasLt.so.13 or .12) was not found: training takes many times as long without it");
  Trainer trainer(model, arguments.is_full ? std::nullopt : std::optional(arguments.lora), arguments.training,
                  std::move(train), std::move(evaluation));
  const bool is_terminal = isatty(STDERR_FILENO) != 0;
  std::function<void(const TrainingProgress&)> on_step;
  if (is_terminal) on_step = draw_bar;
  return trainer.train([&](const TrainingProgress& now) { print_progress(now, is_terminal); }, on_step);
}

/// NAME=NUMBER: what stands before the last '=' is a regular expression, which may hold others.
template <typename T>
std::map<std::string, T> parse_patterns(const std::vector<std::string>& entries, const char* option) {
  std::map<std::string, T> patterns;
  for (const std::string& entry : entries) {
    const size_t at = entry.rfind('=');
    T value{};
    const bool is_good = at != std::string::npos && at > 0 && CLI::detail::lexical_cast(entry.substr(at + 1), value);
    require(is_good, "{}: found '{}', expected NAME=NUMBER", option, entry);
    patterns[entry.substr(0, at)] = value;
  }
  return patterns;
}

std::vector<int64_t> parse_layers(const std::string& text) {
  std::vector<int64_t> layers;
  for (const std::string& number : split_list(text)) {
    int64_t layer = -1;
    require(CLI::detail::lexical_cast(number, layer) && layer >= 0,
            "--layers-to-transform: found '{}', expected layer numbers such as 0,1,2", text);
    layers.push_back(layer);
  }
  return layers;
}

TrainingReport train_either(FinetuneArguments& arguments) {
  if (!is_encoder_decoder(arguments.model.model)) return train(arguments, [&] { return arguments.model.load(); });
  AutoModelForSeq2SeqLM model = arguments.model.load_seq2seq();
  arguments.dataset.decoder_start_token_id = model.decoder_start_token_id();
  return train(arguments, [&]() -> AutoModelForSeq2SeqLM& { return model; });
}

int run(FinetuneArguments& arguments) {
  for (const CLI::Option* option : arguments.lora_options)
    require(!arguments.is_full || option->count() == 0, "--full trains every parameter, without an adapter: found {}",
            option->get_name());
  arguments.lora.target_modules = parse_modules(arguments.targets);
  arguments.lora.exclude_modules = parse_modules(arguments.excluded);
  arguments.lora.layers_to_transform = parse_layers(arguments.layers);
  arguments.lora.rank_pattern = parse_patterns<int64_t>(arguments.ranks, "--rank-pattern");
  arguments.lora.alpha_pattern = parse_patterns<double>(arguments.alphas, "--alpha-pattern");
  arguments.lora.modules_to_save = split_list(arguments.saved_modules);
  arguments.lora.validate();
  TrainingArguments& training = arguments.training;
  training.output_dir = arguments.output;
  training.packing_length = arguments.dataset.max_length;
  if (arguments.resume_option->count() > 0)
    training.resume_from_checkpoint = arguments.resume.empty() ? arguments.output : arguments.resume;
  training.validate();
  require(!arguments.eval_data.empty() || training.eval_steps == 0, "--eval-steps: found {} without --eval-data",
          training.eval_steps);
  if (arguments.completion_only || arguments.all_tokens)
    arguments.dataset.completion_only_loss = arguments.completion_only;
  const TrainingReport report = train_either(arguments);
  if (arguments.json) {
    Json json = {{"steps", report.steps},
                 {"final_loss", report.final_loss},
                 {"tokens_per_second", report.tokens_per_second},
                 {"trained_tokens", report.trained_tokens},
                 {"peak_memory_bytes", report.peak_memory_bytes},
                 {"stopped_early", report.stopped_early}};
    if (report.eval_loss) json["eval_loss"] = *report.eval_loss;
    print_json(json);
    return 0;
  }
  std::cout << report.trainable_parameters << '\n'
            << fmt::format("{}: {} steps, final loss {:.4f}, {:.0f} tokens/s, peak memory {}\n", arguments.output,
                           report.steps, report.final_loss, report.tokens_per_second,
                           human_size(report.peak_memory_bytes));
  if (report.eval_loss)
    std::cout << fmt::format("evaluation loss {:.4f}, perplexity {:.2f}\n", *report.eval_loss,
                             std::exp(*report.eval_loss));
  return 0;
}

void add_lora(CLI::App& command, FinetuneArguments& arguments) {
  const char* group = "LoRA (as PEFT's LoraConfig)";
  LoraConfig& lora = arguments.lora;
  command.add_option("--r", lora.r, "Rank (16)")->group(group);
  command.add_option("--lora-alpha", lora.lora_alpha, "Scale: alpha / r (32)")->group(group);
  command.add_option("--lora-dropout", lora.lora_dropout, "On the adapters' inputs (0.05)")->group(group);
  command.add_option("--target-modules", arguments.targets, "A,B, a regular expression, or all-linear (default)")
      ->group(group);
  command.add_option("--exclude-modules", arguments.excluded, "A,B or a regular expression")->group(group);
  command.add_option("--layers-to-transform", arguments.layers, "Layer numbers N,M (all)")->group(group);
  command.add_option("--rank-pattern", arguments.ranks, "NAME=R: another rank for modules that end so; repeatable")
      ->group(group)
      ->allow_extra_args(false);
  command.add_option("--alpha-pattern", arguments.alphas, "NAME=ALPHA: the same for alpha; repeatable")
      ->group(group)
      ->allow_extra_args(false);
  command.add_flag("--use-rslora", lora.use_rslora, "Scale by alpha / sqrt(r)")->group(group);
  command
      .add_option("--init-lora-weights", lora.init_lora_weights,
                  "default, gaussian, random, loftq, olora, pissa or pissa_niter_N")
      ->group(group);
  command.add_flag("--use-dora", lora.use_dora, "DoRA: rows of the updated weights have a trained length")
      ->group(group);
  command.add_option("--bias", lora.bias, "Biases to train: none (default), all, or lora_only: of the targets")
      ->group(group);
  command.add_option("--modules-to-save", arguments.saved_modules, "Modules A,B that are trained whole")->group(group);
  arguments.lora_options = command.get_options([&](const CLI::Option* option) { return option->get_group() == group; });
  command.add_flag("--full", arguments.is_full, "No adapter: train every parameter of an unquantized model")
      ->group(group);
}

void add_training(CLI::App& command, FinetuneArguments& arguments) {
  const char* group = "Training (as transformers' TrainingArguments)";
  TrainingArguments& training = arguments.training;
  training.learning_rate = 2e-4;
  command.add_option("--num-train-epochs", training.num_train_epochs, "Passes over the data (3)")->group(group);
  command.add_option("--max-steps", training.max_steps, "Steps, whatever the epochs")->group(group);
  command
      .add_option("--per-device-train-batch-size", training.per_device_train_batch_size, "Samples, or packed rows (8)")
      ->group(group);
  command.add_option("--gradient-accumulation-steps", training.gradient_accumulation_steps, "Batches a step (1)")
      ->group(group);
  command.add_option("--learning-rate", training.learning_rate, "At its highest (2e-4)")->group(group);
  command
      .add_option("--lr-scheduler-type", training.lr_scheduler_type, "linear, cosine, constant or constant_with_warmup")
      ->group(group);
  command.add_option("--warmup-steps", training.warmup_steps, "Steps up to the highest rate (0)")->group(group);
  command.add_option("--warmup-ratio", training.warmup_ratio, "The same as a share of all steps (0)")->group(group);
  command.add_option("--max-grad-norm", training.max_grad_norm, "Longer gradients are shortened (1; 0: never)")
      ->group(group);
  command.add_option("--weight-decay", training.weight_decay, "(0)")->group(group);
  command.add_option("--optim", training.optim, "adamw_torch, adamw_8bit, paged_adamw_8bit, lion_8bit, ...")
      ->group(group);
  command.add_option("--adam-beta1", training.adam_beta1, "Of Adam, AdEMAMix and Lion (0.9)")->group(group);
  command.add_option("--adam-beta2", training.adam_beta2, "The same (0.999)")->group(group);
  command.add_option("--adam-epsilon", training.adam_epsilon, "Of Adam and its kin (1e-8)")->group(group);
  command.add_flag("--gradient-checkpointing", training.gradient_checkpointing, "Less memory, a third more work")
      ->group(group);
  command
      .add_flag("--activation-offloading", training.activation_offloading,
                "With --gradient-checkpointing on a GPU: what is kept of each layer waits in main memory")
      ->group(group);
  command.add_flag("--packing", training.packing, "Fill rows of --max-length tokens with several samples")
      ->group(group);
  command.add_option("--logging-steps", training.logging_steps, "Steps between reports (10)")->group(group);
  command.add_option("--eval-steps", training.eval_steps, "Steps between evaluations (0: at the end)")->group(group);
  command
      .add_option("--early-stopping-patience", training.early_stopping_patience,
                  "Stop after so many evaluations without a better loss, keep the best (0: never)")
      ->group(group);
  command.add_option("--save-steps", training.save_steps, "Steps between checkpoints (500; 0: none)")->group(group);
  command.add_option("--save-total-limit", training.save_total_limit, "Checkpoints that stay, the newest (0: all)")
      ->group(group);
  command.add_option("--report-to", training.report_to, "tensorboard: event files in OUTPUT/runs (none)")->group(group);
  command.add_option("--seed", training.seed, "Of the adapter, the order of the data and dropout (42)")->group(group);
  arguments.resume_option = command
                                .add_option("--resume-from-checkpoint", arguments.resume,
                                            "A checkpoint; without a value the newest of --output")
                                ->expected(0, 1)
                                ->group(group);
}

}  // namespace

void add_finetune(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand(
      "finetune", "Train a LoRA adapter over a frozen model (QLoRA if it is quantized), or a whole model");
  auto arguments = std::make_shared<FinetuneArguments>();
  arguments->model.device_map = "cpu";
  arguments->model.add_to(*command);
  command->add_option("--data", arguments->data, "JSON lines with text, prompt and completion, or messages")
      ->required();
  command->add_option("--eval-data", arguments->eval_data, "The same, to measure the loss on");
  command->add_option("--output", arguments->output, "Directory for the adapter and its checkpoints")->required();
  command->add_option("--max-length", arguments->dataset.max_length,
                      "Tokens of a sample (1024, or the model's context if that is less); longer ones are cut");
  command->add_flag("--drop-long", arguments->dataset.drop_long, "Leave longer samples out instead");
  auto* only = command->add_flag("--completion-only-loss", arguments->completion_only,
                                 "Loss on completions and assistant turns alone (default for prompt/completion)");
  command->add_flag("--all-tokens-loss", arguments->all_tokens, "Loss on prompts, too")->excludes(only);
  add_lora(*command, *arguments);
  add_training(*command, *arguments);
  command->add_flag("--json", arguments->json, "One JSON object instead of text");
  command->callback([&action, arguments] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace nibble::cli
