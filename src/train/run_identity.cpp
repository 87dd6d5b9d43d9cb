// Hashes are FNV-1a of 64 bits; of each weight the first bytes alone.
#include "train/run_identity.h"

#include <algorithm>
#include <span>

#include "base/error.h"

namespace nibble::train {
namespace {

class Hash {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) value_ = (value_ ^ static_cast<uint64_t>(byte)) * 0x100000001b3u;
  }
  template <typename T>
  void add_all(const std::vector<T>& values) {
    const uint64_t count = values.size();
    add(std::as_bytes(std::span(&count, 1)));
    add(std::as_bytes(std::span(values)));
  }
  std::string text() const { return fmt::format("{:016x}", value_); }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

std::string hash_of(const models::Decoder& base) {
  constexpr int64_t kBytes = 1024;
  Hash hash;
  const auto add = [&](const Tensor& tensor) {
    std::vector<std::byte> bytes(static_cast<size_t>(std::min(kBytes, tensor.size_bytes())));
    if (!bytes.empty()) base.backend().download(bytes.data(), tensor.data(), static_cast<int64_t>(bytes.size()));
    hash.add_all(bytes);
  };
  for (const std::string& name : base.weights().names()) {
    const nn::Weight& weight = base.weights().get(name);
    if (const auto* dense = std::get_if<nn::DenseWeight>(&weight)) add(dense->weight);
    if (const auto* rows = std::get_if<nn::WeightInt8>(&weight)) add(rows->weight.values);
    const auto* packed = std::get_if<nn::Weight4Bit>(&weight);
    if (!packed) continue;
    add(packed->weight.packed);
    add(packed->weight.absmax);
  }
  return hash.text();
}

Json number(const std::optional<double>& value) { return value ? Json(*value) : Json("the default"); }

void add_quantization(Json& json, const models::Weights& weights) {
  const BitsAndBytesConfig& config = weights.plan().config;
  const bool is_quantized = !weights.plan().quantized.empty();
  json["dtype"] = name_of(weights.dtype());
  json["load_in_4bit"] = is_quantized && config.load_in_4bit;
  json["load_in_8bit"] = is_quantized && config.load_in_8bit;
  if (is_quantized && config.load_in_4bit) {
    json["bnb_4bit_quant_type"] = config.bnb_4bit_quant_type;
    json["bnb_4bit_use_double_quant"] = config.bnb_4bit_use_double_quant;
    json["bnb_4bit_compute_dtype"] = name_of(config.bnb_4bit_compute_dtype);
  }
  if (is_quantized && config.load_in_8bit) json["llm_int8_threshold"] = config.llm_int8_threshold;
}

}  // namespace

std::string hash_of(const Dataset& dataset) {
  Hash hash;
  for (const Dataset::Sample& sample : dataset.samples) {
    hash.add_all(sample.ids);
    hash.add_all(std::vector<char>(sample.is_target.begin(), sample.is_target.end()));
    hash.add_all(sample.source);
  }
  return hash.text();
}

Json run_identity(const TrainingArguments& arguments, const Dataset& train, const models::Decoder& base,
                  const adapters::Adapter& adapter) {
  Json json = {{"samples", train.samples.size()},
               {"tokens", train.token_count()},
               {"per_device_train_batch_size", arguments.per_device_train_batch_size},
               {"gradient_accumulation_steps", arguments.gradient_accumulation_steps},
               {"learning_rate", arguments.learning_rate},
               {"lr_scheduler_type", arguments.lr_scheduler_type},
               {"warmup_steps", arguments.warmup_steps},
               {"warmup_ratio", arguments.warmup_ratio},
               {"max_grad_norm", arguments.max_grad_norm},
               {"weight_decay", arguments.weight_decay},
               {"optim", arguments.optim},
               {"adam_beta1", number(arguments.adam_beta1)},
               {"adam_beta2", number(arguments.adam_beta2)},
               {"adam_epsilon", number(arguments.adam_epsilon)},
               {"packing", arguments.packing},
               {"seed", arguments.seed}};
  if (arguments.packing) json["packing_length"] = arguments.packing_length;
  if (!adapter.is_whole) {
    const LoraConfig& lora = adapter.config;
    json["r"] = lora.r;
    json["lora_alpha"] = lora.lora_alpha;
    json["lora_dropout"] = lora.lora_dropout;
    json["use_rslora"] = lora.use_rslora;
    json["rank_pattern"] = lora.rank_pattern;
    json["alpha_pattern"] = lora.alpha_pattern;
    json["init_lora_weights"] = lora.init_lora_weights;
  }
  add_quantization(json, base.weights());
  json["data"] = hash_of(train);
  json["base_weights"] = hash_of(base);
  return json;
}

void require_same_run(const Json& state, const Json& mine, std::string_view source) {
  const auto theirs = state.find("run");
  if (theirs == state.end() || !theirs->is_object()) fail(ErrorCode::corrupt_file, "{}: key 'run' is missing", source);
  const auto text = [](const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); };
  for (const auto& item : mine.items()) {
    const auto found = theirs->find(item.key());
    require(found == theirs->end() || text(*found) == text(item.value()),
            "{}: the run was made with {} {}, found {} now; expected the same", source, item.key(),
            found == theirs->end() ? "" : text(*found), text(item.value()));
  }
}

}  // namespace nibble::train
