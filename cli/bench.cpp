// nibble bench: prefill and decode rates, with the limit that memory bandwidth sets beside them.
#include <iostream>

#include "base/error.h"
#include "base/random.h"
#include "command.h"

namespace nibble::cli {
namespace {

struct BenchArguments {
  ModelArguments model;
  SamplingArguments sampling;
  std::vector<int64_t> batch_sizes{1};
  std::vector<int64_t> prompt_lengths{512};
  int64_t new_tokens = 64;
  int64_t repeats = 3;
  bool random_weights = false;
  bool json = false;
};

struct Row {
  int64_t batch_size, prompt_length;
  double prefill, decode, decode_limit;
};

Row measure(AutoModelForCausalLM& model, const BenchArguments& arguments, int64_t batch, int64_t length,
            double bandwidth) {
  Random random(1);
  std::vector<std::vector<int32_t>> prompts(static_cast<size_t>(batch));
  for (auto& prompt : prompts)
    for (int64_t i = 0; i < length; ++i)
      prompt.push_back(static_cast<int32_t>(random.next() % static_cast<uint64_t>(model.vocab_size())));
  GenerationConfig config = arguments.sampling.merged({});
  config.max_new_tokens = arguments.new_tokens;
  config.eos_token_id = {-1};  // no id: every run makes the same number of tokens
  Row row{batch, length, 0, 0, bandwidth / double(model.summary().decode_bytes) * double(batch)};
  for (int64_t i = 0; i < arguments.repeats; ++i) {
    const GenerationTimes times = model.generate(prompts, config).times;
    row.prefill = std::max(row.prefill, double(times.prompt_tokens) / times.prefill_seconds);
    if (arguments.new_tokens > 1)
      row.decode = std::max(row.decode, double(times.new_tokens - batch) / times.decode_seconds);
  }
  return row;
}

int run(const BenchArguments& arguments) {
  const auto positive = [](const std::vector<int64_t>& values, const char* option) {
    require(!values.empty(), "{}: expected at least one number", option);
    for (const int64_t value : values) require(value > 0, "{}: found {}, expected a positive number", option, value);
  };
  positive(arguments.batch_sizes, "--batch-sizes");
  positive(arguments.prompt_lengths, "--prompt-lengths");
  positive({arguments.new_tokens}, "--new-tokens");
  positive({arguments.repeats}, "--repeats");
  arguments.sampling.merged({}).validate();
  AutoModelForCausalLM model = arguments.model.load(arguments.random_weights);
  const int64_t loading_bytes = model.peak_device_bytes();
  Json rows = Json::array();
  if (!arguments.json)
    std::cout << fmt::format("{:>6} {:>7} {:>12} {:>11} {:>13} {:>9}\n", "batch", "prompt", "prefill t/s", "decode t/s",
                             "memory limit", "of limit");
  for (const int64_t batch : arguments.batch_sizes)
    for (const int64_t length : arguments.prompt_lengths) {
      const double bandwidth = model.measure_read_bandwidth();
      const Row row = measure(model, arguments, batch, length, bandwidth);
      if (arguments.json)
        rows.push_back({{"batch_size", row.batch_size},
                        {"prompt_length", row.prompt_length},
                        {"prefill_tokens_per_second", row.prefill},
                        {"decode_tokens_per_second", row.decode},
                        {"decode_limit_tokens_per_second", row.decode_limit},
                        {"read_bandwidth_bytes_per_second", bandwidth}});
      else
        std::cout << fmt::format("{:>6} {:>7} {:>12.1f} {:>11.1f} {:>13.1f} {:>8.0f}%\n", batch, length, row.prefill,
                                 row.decode, row.decode_limit, 100 * row.decode / row.decode_limit)
                  << std::flush;
    }
  if (arguments.json)
    print_json({{"rows", rows},
                {"decode_bytes", model.summary().decode_bytes},
                {"memory_footprint_bytes", model.get_memory_footprint()},
                {"peak_device_bytes_loading", loading_bytes},
                {"peak_rss_bytes", peak_rss_bytes()}});
  return 0;
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("bench", "Prefill and decode rates beside the memory-bandwidth limit");
  auto arguments = std::make_shared<BenchArguments>();
  arguments->model.add_to(*command);
  arguments->model.add_use_to(*command);
  arguments->sampling.add_choice_to(*command);
  command->add_option("--batch-sizes", arguments->batch_sizes, "Prompts at once, comma-separated (1)")->delimiter(',');
  command->add_option("--prompt-lengths", arguments->prompt_lengths, "Tokens a prompt, comma-separated (512)")
      ->delimiter(',');
  command->add_option("--new-tokens", arguments->new_tokens, "Tokens to generate a prompt (64)");
  command->add_option("--repeats", arguments->repeats, "Runs; the best counts (3)");
  command->add_flag("--random-weights", arguments->random_weights,
                    "MODEL needs a config.json alone: its weights are random numbers");
  command->add_flag("--json", arguments->json, "One JSON object instead of text");
  command->callback([&action, arguments] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace nibble::cli
