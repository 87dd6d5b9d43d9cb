// Loading and running a language model, in the words of transformers and bitsandbytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/generate.h"
#include "nibble/tokenizer.h"
#include "nibble/types.h"

namespace nibble {

/// Field names, defaults and rules as transformers' BitsAndBytesConfig.
struct BitsAndBytesConfig {
  bool load_in_8bit = false;
  bool load_in_4bit = false;
  double llm_int8_threshold = 6.0;  // activations of this magnitude and above stay in 16 bits; 0: none
  std::optional<std::vector<std::string>>
      llm_int8_skip_modules{};  // replaces the default list (the tied and output head)
  bool llm_int8_enable_fp32_cpu_offload = false;
  DType bnb_4bit_compute_dtype = DType::f32;
  std::string bnb_4bit_quant_type = "fp4";  // or "nf4"
  bool bnb_4bit_use_double_quant = false;
  DType bnb_4bit_quant_storage = DType::u8;
  int64_t bnb_4bit_blocksize = 64;  // 32 to 4096; files with another than 64 load in bitsandbytes, too

  /// True if either flag is set.
  bool is_quantizable() const { return load_in_8bit || load_in_4bit; }
  /// Errors: invalid_argument naming the field, what was found and what was expected.
  void validate() const;
};

struct LoadOptions {
  BitsAndBytesConfig quantization_config{};         // ignored, with a warning, when the checkpoint is quantized already
  std::optional<DType> dtype{};                     // of what is not quantized; nullopt ("auto"): the checkpoint's
  std::string device_map = "auto";                  // "cpu", "cuda", "cuda:N", or "auto": a GPU with room, else the CPU
  std::string kv_cache_dtype = "auto";              // the model's type, or "int8" with a scale for each key: on a GPU
  int64_t max_memory = 0;                           // bytes that may be taken from the GPU; 0: all that it has
  bool random_weights = false;                      // of config.json's shapes, no file is read: for measurements
  int threads = 0;                                  // 0: one per CPU this process may use
  Progress progress{};                              // may be empty
  std::function<void(std::string_view)> warning{};  // may be empty
  std::function<void(std::string_view)> notice{};   // may be empty; hears which device "auto" took, and why
};

/// A node of the module tree, as torch's named_modules shows it.
struct ModuleInfo {
  std::string name;        // "model.layers.0.self_attn.q_proj"
  std::string class_name;  // "Linear4bit"
  std::string repr;        // "Linear4bit(in_features=576, out_features=576, bias=False)"
  std::string dtype;       // of the weight as stored: "uint8", "int8", "bfloat16"; empty for modules without one
  int64_t parameters = 0;  // own, unpacked
  int64_t size_bytes = 0;  // own, as get_memory_footprint counts
  bool is_quantized = false;
};

/// What inspect shows of a model, loaded or from its config.json alone.
struct ModelSummary {
  std::string tree;  // as print(model) shows it
  std::vector<ModuleInfo> modules;
  std::vector<std::string> skipped_modules;  // linear layers that stay unquantized
  int64_t num_parameters = 0;
  int64_t memory_footprint_bytes = 0;
  int64_t statistics_bytes = 0;  // absmax and scales, which get_memory_footprint does not count
  int64_t decode_bytes = 0;      // read from memory for each generated token: weights and statistics, without the cache
  int64_t max_position_embeddings = 0;  // the context: most tokens of a sequence
};

struct GenerationOutput {
  std::vector<std::vector<int32_t>> sequences;  // prompt and new tokens of each row
  std::vector<std::string> texts;               // new text of each row
  std::vector<StopReason> stop_reasons;
  GenerationTimes times;
  const std::vector<int32_t>& operator[](size_t row) const { return sequences[row]; }
};

struct PerplexityResult {
  double perplexity = 0;
  double mean_nll = 0;  // nats a token
  int64_t tokens = 0;   // predicted tokens
};

/// A causal language model in memory. Move-only. One call at a time; different models may run in parallel.
class AutoModelForCausalLM {
 public:
  /// Loads `path` (what resolve_model accepts, or a .gguf file), quantizing tensor by tensor as
  /// it is read: peak memory is the result plus the largest tensor. A quantized checkpoint is used from the mapped
  /// file. Errors: not_found, corrupt_file (file, tensor, found, expected), unsupported (architecture, type),
  /// invalid_argument (options, a GPU that is not there), device (no driver, too old), out_of_memory.
  static AutoModelForCausalLM from_pretrained(const std::filesystem::path& path, const LoadOptions& options = {});

  AutoModelForCausalLM(AutoModelForCausalLM&&) noexcept;
  AutoModelForCausalLM& operator=(AutoModelForCausalLM&&) noexcept;
  ~AutoModelForCausalLM();

  /// Continues one prompt or a batch of prompts of different lengths. `config` counts as it is; start from
  /// generation_config() for what the model's authors recommend. `tokenizer` is needed for stop strings and for the
  /// texts of the output and of `on_token`; without it those texts are empty.
  /// Errors: invalid_argument (options, ids outside the vocabulary, prompt longer than the model's context), cancelled.
  GenerationOutput generate(const std::vector<int32_t>& prompt, const GenerationConfig& config = {},
                            const AutoTokenizer* tokenizer = nullptr, const TokenCallback& on_token = {});
  GenerationOutput generate(const std::vector<std::vector<int32_t>>& prompts, const GenerationConfig& config = {},
                            const AutoTokenizer* tokenizer = nullptr, const TokenCallback& on_token = {});

  /// Logits (tokens, vocab), row-major, of every position of one sequence.
  std::vector<float> logits(std::span<const int32_t> tokens);

  /// Sliding-window perplexity: windows of `context` tokens every `stride`, each token scored once.
  PerplexityResult perplexity(std::span<const int32_t> tokens, int64_t context = 512, int64_t stride = 512,
                              const Progress& progress = {});

  /// Streaming read bandwidth of the memory that the model lies in, in bytes a second; takes about 0.3 s.
  double measure_read_bandwidth() const;
  /// Memory taken from the GPU at most so far; 0 on the CPU.
  int64_t peak_device_bytes() const;

  /// Reads an adapter that PEFT or finetune wrote, under a name of its own, and applies it: y += scale * B A x beside
  /// the weights, which stay as they are. Errors: as LoraConfig; invalid_argument (another model's; the name is taken).
  void load_adapter(const std::filesystem::path& path, const std::string& name = "default");
  /// Applies another adapter that was loaded. Errors: not_found.
  void set_adapter(const std::string& name);
  /// The base model again; adapters stay loaded.
  void disable_adapter();
  /// The name of the adapter that is applied, or nothing.
  const std::string& active_adapter() const;

  /// Parameters and buffers as stored; statistics are not counted (as in transformers).
  int64_t get_memory_footprint() const;
  int64_t num_parameters() const;
  const ModelSummary& summary() const;
  int64_t vocab_size() const;
  int64_t max_position_embeddings() const;
  std::map<std::string, std::string> hf_device_map() const;
  const GenerationConfig& generation_config() const;  // from generation_config.json

  /// Writes config.json, generation_config.json, the tokenizer's files and safetensors that transformers loads.
  /// The directory appears whole or not at all. Errors: invalid_argument (it exists), io.
  void save_pretrained(const std::filesystem::path& path, int64_t max_shard_size_bytes = int64_t{50} << 30) const;

  struct Implementation;
  Implementation& implementation() { return *model_; }

 private:
  explicit AutoModelForCausalLM(std::unique_ptr<Implementation> model);
  std::unique_ptr<Implementation> model_;
};

/// Prints the module tree as Python's print(model) does.
std::ostream& operator<<(std::ostream& out, const AutoModelForCausalLM& model);

/// `name` itself if it exists; else the newest snapshot of a hub id ("org/name") in the local Hugging Face cache
/// (HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub). Errors: not_found.
std::filesystem::path resolve_model(const std::string& name);

/// The same as summary(), from config.json alone: no weights are read.
ModelSummary inspect(const std::filesystem::path& path, const BitsAndBytesConfig& config = {},
                     std::optional<DType> dtype = std::nullopt);

}  // namespace nibble
