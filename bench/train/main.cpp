// Steps of nibble finetune over random weights and tokens of a config's shapes: tokens a second and peak memory.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "adapters/lora.h"
#include "base/error.h"
#include "base/json.h"
#include "base/output.h"
#include "base/random.h"
#include "models/decoder.h"
#include "models/random_weights.h"
#include "models/registry.h"
#include "ops/profile.h"
#include "train/loop.h"

namespace nibble {
namespace {

struct Arguments {
  std::string config, level = "nf4+dq", optim = "paged_adamw_8bit", device = "cuda", dtype = "bfloat16";
  std::vector<int64_t> lengths = {1024};
  int64_t batch = 4, length = 1024, steps = 5, warm_ups = 2, rank = 16;
  int64_t layers = 0;
  double dropout = 0.05, max_memory = 0;
  bool has_checkpointing = false, has_offloading = false, is_full = false, has_dora = false;
};

std::unique_ptr<models::Decoder> load(const Arguments& arguments) {
  const std::filesystem::path path = std::filesystem::path(arguments.config) / "config.json";
  Json config = read_json(path);
  if (arguments.layers > 0) config["num_hidden_layers"] = arguments.layers;
  config["max_position_embeddings"] = std::max(arguments.length, config["max_position_embeddings"].get<int64_t>());
  LoadOptions options;
  options.dtype = dtype_from_name(arguments.dtype);
  options.device_map = arguments.device;
  options.max_memory = std::llround(arguments.max_memory * 1e9);
  BitsAndBytesConfig& quantization = options.quantization_config;
  quantization.load_in_4bit = arguments.level.starts_with("nf4");
  quantization.load_in_8bit = arguments.level == "int8";
  quantization.bnb_4bit_quant_type = "nf4";
  quantization.bnb_4bit_use_double_quant = arguments.level == "nf4+dq";
  quantization.bnb_4bit_compute_dtype = DType::bf16;
  require(quantization.is_quantizable() || arguments.level == "bf16",
          "--level: found '{}', expected nf4+dq, nf4, int8 or bf16", arguments.level);
  auto checkpoint =
      models::random_checkpoint(models::build_spec(config, path.string()), dtype_from_name(arguments.dtype));
  return models::load_decoder(std::move(config), path.string(), std::move(checkpoint), options);
}

/// A sample for each row of each step.
Dataset random_dataset(const Arguments& arguments, int64_t vocab) {
  Random random(1);
  Dataset dataset;
  for (int64_t row = 0; row < arguments.batch * (arguments.warm_ups + arguments.steps); ++row) {
    Dataset::Sample sample;
    for (int64_t t = 0; t < arguments.length; ++t)
      sample.ids.push_back(static_cast<int32_t>(random.next() % static_cast<uint64_t>(vocab)));
    sample.is_target.assign(sample.ids.size(), true);
    sample.is_target[0] = false;
    dataset.samples.push_back(std::move(sample));
  }
  return dataset;
}

TrainingArguments training_of(const Arguments& arguments) {
  TrainingArguments training;
  training.output_dir = std::filesystem::temp_directory_path() / ("nibble-bench-train-" + std::to_string(::getpid()));
  training.num_train_epochs = 1;
  training.per_device_train_batch_size = arguments.batch;
  training.gradient_checkpointing = arguments.has_checkpointing;
  training.activation_offloading = arguments.has_offloading;
  training.optim = arguments.optim;
  training.logging_steps = 1;
  training.save_steps = 0;
  return training;
}

adapters::Adapter make_adapter(const Arguments& arguments, const models::Decoder& decoder) {
  if (arguments.is_full) return adapters::whole_model(decoder);
  LoraConfig lora{.r = arguments.rank, .lora_alpha = 32, .lora_dropout = arguments.dropout};
  lora.target_modules = "all-linear";
  lora.use_dora = arguments.has_dora;
  adapters::Adapter adapter = adapters::create_adapter(decoder.spec(), lora, 1);
  adapters::add_from_model(adapter, decoder);
  return adapter;
}

void run_length(const Arguments& arguments, const models::Decoder& decoder) {
  adapters::Adapter adapter = make_adapter(arguments, decoder);
  const Dataset dataset = random_dataset(arguments, decoder.vocab_size());
  const TrainingArguments training = training_of(arguments);
  std::vector<double> rates;
  const auto on_progress = [&](const TrainingProgress& now) {
    std::printf("step %lld: loss %.4f, norm %.4f, %.0f tok/s, peak %.2f GB\n", static_cast<long long>(now.step),
                now.loss, now.grad_norm, now.tokens_per_second, static_cast<double>(now.peak_memory_bytes) * 1e-9);
    std::fflush(stdout);
    if (now.step > arguments.warm_ups) rates.push_back(now.tokens_per_second);
  };
  std::filesystem::remove_all(training.output_dir);
  const TrainingReport report =
      train::train_adapter(decoder, adapter, arguments.config, training, dataset, nullptr, on_progress);
  std::filesystem::remove_all(training.output_dir);
  std::sort(rates.begin(), rates.end());
  const double rate = rates[rates.size() / 2];
  const std::string what = arguments.is_full ? " full" : arguments.has_dora ? " dora" : "";
  const char* checkpointing = arguments.has_offloading ? "offloaded" : arguments.has_checkpointing ? "on" : "off";
  std::printf("%s%s %lldx%lld checkpointing %s %s: %.0f tok/s, step %.1f ms, peak %.2f GB\n", arguments.level.c_str(),
              what.c_str(), static_cast<long long>(arguments.batch), static_cast<long long>(arguments.length),
              checkpointing, arguments.optim.c_str(), rate,
              1e3 * static_cast<double>(arguments.batch * arguments.length) / rate,
              static_cast<double>(report.peak_memory_bytes) * 1e-9);
}

int run(Arguments& arguments) {
  const std::vector<int64_t> lengths = arguments.lengths;
  arguments.length = *std::max_element(lengths.begin(), lengths.end());
  const auto decoder = load(arguments);
  if (const device::CudaStream* gpu = decoder->backend().cuda())
    std::printf("loaded: %.2f GB on %s\n", static_cast<double>(gpu->reserved_bytes()) * 1e-9,
                gpu->description().name.c_str());
  for (const int64_t length : lengths) {
    arguments.length = length;
    try {
      run_length(arguments, *decoder);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::out_of_memory) throw;
      std::printf("%lld tokens: %s\n", static_cast<long long>(length), error.what());
    }
  }
  std::fputs(ops::profile_report().c_str(), stdout);
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  CLI::App app("Training steps over random weights");
  nibble::Arguments arguments;
  app.add_option("config", arguments.config, "A directory with config.json")->required();
  app.add_option("--level", arguments.level, "nf4+dq, nf4, int8 or bf16");
  app.add_option("--optim", arguments.optim, "As nibble finetune's");
  app.add_option("--dtype", arguments.dtype, "Of what is not quantized; float32: of activations, too");
  app.add_option("--device", arguments.device, "cuda, cuda:N or cpu");
  app.add_option("--batch", arguments.batch, "Sequences");
  app.add_option("--length", arguments.lengths, "Tokens of each; several, A,B: runs one after the other")
      ->delimiter(',');
  app.add_option("--steps", arguments.steps, "Measured");
  app.add_option("--warm-ups", arguments.warm_ups, "Before them");
  app.add_option("--rank", arguments.rank, "Of the adapter");
  app.add_option("--dropout", arguments.dropout, "On the adapter's input");
  app.add_flag("--gradient-checkpointing", arguments.has_checkpointing, "Keep only the layers' inputs");
  app.add_flag("--activation-offloading", arguments.has_offloading, "They wait in main memory");
  app.add_option("--max-memory", arguments.max_memory, "GB that may be taken from the GPU");
  app.add_option("--layers", arguments.layers, "Of the model, instead of the config's");
  app.add_flag("--full", arguments.is_full, "Train every parameter (--level bf16)");
  app.add_flag("--use-dora", arguments.has_dora, "DoRA");
  CLI11_PARSE(app, argc, argv);
  try {
    return nibble::run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
