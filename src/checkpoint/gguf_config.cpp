// The llama family: one line per architecture and per tensor.
#include "checkpoint/gguf_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numbers>

namespace nibble {
namespace {

constexpr std::array<GgufArchitecture, 3> kArchitectures{{
    {"llama", "llama", "LlamaForCausalLM", true},  // also Mistral, SmolLM, TinyLlama, ...
    {"qwen2", "qwen2", "Qwen2ForCausalLM", false},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", false},
}};

// Llama with a sliding window is what transformers calls Mistral.
constexpr GgufArchitecture kMistral{"llama", "mistral", "MistralForCausalLM", true};

struct NamePair {
  std::string_view gguf, parameter;
};

constexpr std::array<NamePair, 3> kModelNames{
    {{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}}};

constexpr std::array<NamePair, 11> kLayerNames{{{"attn_norm", "input_layernorm"},
                                                {"ffn_norm", "post_attention_layernorm"},
                                                {"attn_q", "self_attn.q_proj"},
                                                {"attn_k", "self_attn.k_proj"},
                                                {"attn_v", "self_attn.v_proj"},
                                                {"attn_output", "self_attn.o_proj"},
                                                {"attn_q_norm", "self_attn.q_norm"},
                                                {"attn_k_norm", "self_attn.k_norm"},
                                                {"ffn_gate", "mlp.gate_proj"},
                                                {"ffn_up", "mlp.up_proj"},
                                                {"ffn_down", "mlp.down_proj"}}};

template <size_t kSize>
const std::string_view* find_name(const std::array<NamePair, kSize>& names, std::string_view gguf) {
  const auto* found = std::find_if(names.begin(), names.end(), [&](const auto& pair) { return pair.gguf == gguf; });
  return found == names.end() ? nullptr : &found->parameter;
}

// GGUF keeps numbers as fp32: 1e-05 comes back as 9.999999747378752e-06. The shortest decimal of the fp32 is what was
// meant.
double as_written(double value) {
  const auto narrow = static_cast<float>(value);
  if (static_cast<double>(narrow) != value) return value;
  char text[32];
  const auto written = std::to_chars(text, text + sizeof text, narrow);
  std::from_chars(text, written.ptr, value);
  return value;
}

std::string key_of(const GgufFile& file, std::string_view name) {
  return fmt::format("{}.{}", gguf_architecture(file).name, name);
}

int64_t get_positive(const GgufFile& file, std::string_view name) {
  const std::string key = key_of(file, name);
  const int64_t value = file.get_integer(key);
  if (value < 1 || value > INT32_MAX)
    fail(ErrorCode::corrupt_file, "{}: key '{}': found {}, expected 1 to 2^31 - 1", file.source(), key, value);
  return value;
}

int64_t positive_or(const GgufFile& file, std::string_view name, int64_t fallback) {
  return file.find(key_of(file, name)) ? get_positive(file, name) : fallback;
}

// A finite number above zero, or nullopt if the key is missing.
std::optional<double> find_positive(const GgufFile& file, std::string_view name) {
  const std::string key = key_of(file, name);
  const auto value = file.find_number(key);
  if (value && !(std::isfinite(*value) && *value > 0))
    fail(ErrorCode::corrupt_file, "{}: key '{}': found {}, expected more than 0", file.source(), key, *value);
  return value;
}

// Wavelengths between the two limits are slowed down gradually (Llama 3.1's rule).
double llama3_factor(double frequency, double factor) {
  constexpr double kLow = 1, kHigh = 4, kContext = 8192;
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength < kContext / kHigh) return 1;
  if (wavelength > kContext / kLow) return factor;
  const double smooth = (kContext / wavelength - kLow) / (kHigh - kLow);
  return 1 / ((1 - smooth) / factor + smooth);
}

// GGUF stores the divisor of each frequency; transformers wants the rule that made them.
Json scaling_of_factors(const GgufFile& file, const GgufTensor& tensor, double theta) {
  const Tensor factors = file.decode(tensor, DType::f32);
  const int64_t head_dim = gguf_head_dim(file);
  if (factors.count() != head_dim / 2)
    fail(ErrorCode::corrupt_file, "{}: tensor '{}': found {} values, expected {}", file.source(), tensor.name,
         factors.count(), head_dim / 2);
  const float* values = factors.as<float>();
  const double factor = as_written(*std::max_element(values, values + factors.count()));
  for (int64_t i = 0; i < factors.count(); ++i) {
    const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    const double expected = llama3_factor(frequency, factor);
    if (!(std::abs(values[i] - expected) <= 1e-3 * expected))
      fail(ErrorCode::unsupported, "{}: tensor '{}': value {} is {}, expected {}: not the RoPE scaling of Llama 3",
           file.source(), tensor.name, i, values[i], expected);
  }
  if (factor == 1) return nullptr;
  return {{"rope_type", "llama3"},
          {"factor", factor},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 8192}};
}

Json rope_scaling(const GgufFile& file, double theta) {
  if (const GgufTensor* factors = file.find_tensor("rope_freqs.weight"))
    return scaling_of_factors(file, *factors, theta);
  const std::string* type = file.find_text(key_of(file, "rope.scaling.type"));
  const auto linear = find_positive(file, "rope.scale_linear");  // what old files have
  const auto factor = find_positive(file, "rope.scaling.factor");
  if (!type && linear && *linear != 1) return {{"rope_type", "linear"}, {"factor", as_written(*linear)}};
  if (!type || *type == "none" || !factor || *factor == 1) return nullptr;
  if (*type == "linear") return {{"rope_type", "linear"}, {"factor", as_written(*factor)}};
  if (*type == "yarn")
    return {{"rope_type", "yarn"},
            {"factor", as_written(*factor)},
            {"original_max_position_embeddings", get_positive(file, "rope.scaling.original_context_length")}};
  fail(ErrorCode::unsupported, "{}: RoPE scaling '{}' is not supported: expected none, linear or yarn", file.source(),
       *type);
}

void add_token_ids(const GgufFile& file, Json& config) {
  constexpr std::array<NamePair, 3> kIds{{{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                          {"tokenizer.ggml.eos_token_id", "eos_token_id"},
                                          {"tokenizer.ggml.padding_token_id", "pad_token_id"}}};
  for (const auto& [key, name] : kIds)
    if (const auto id = file.find_integer(key)) config[std::string(name)] = *id;
}

}  // namespace

const GgufArchitecture& gguf_architecture(const GgufFile& file) {
  const std::string* name = file.find_text("general.architecture");
  if (!name) fail(ErrorCode::corrupt_file, "{}: key 'general.architecture' is missing", file.source());
  for (const auto& architecture : kArchitectures) {
    if (*name != architecture.name) continue;
    if (*name == kMistral.name && file.find_integer("llama.attention.sliding_window").value_or(0) > 0) return kMistral;
    return architecture;
  }
  fail(ErrorCode::unsupported, "{}: architecture '{}' is not supported: expected llama, qwen2 or qwen3", file.source(),
       *name);
}

int64_t gguf_head_dim(const GgufFile& file) {
  const int64_t heads = get_positive(file, "attention.head_count"), hidden = get_positive(file, "embedding_length");
  return positive_or(file, "attention.key_length",
                     positive_or(file, "rope.dimension_count", std::max<int64_t>(1, hidden / heads)));
}

Json gguf_config(const GgufFile& file, DType dtype) {
  const GgufArchitecture& architecture = gguf_architecture(file);
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (!embedding || embedding->shape.size() != 2)
    fail(ErrorCode::corrupt_file, "{}: tensor 'token_embd.weight' of 2 dimensions is missing", file.source());
  const int64_t heads = get_positive(file, "attention.head_count");
  const double theta = as_written(find_positive(file, "rope.freq_base").value_or(10000.0));
  const auto epsilon = find_positive(file, "attention.layer_norm_rms_epsilon");
  if (!epsilon)
    fail(ErrorCode::corrupt_file, "{}: key '{}' is missing", file.source(),
         key_of(file, "attention.layer_norm_rms_epsilon"));

  Json config;
  config["architectures"] = {architecture.class_name};
  config["model_type"] = architecture.model_type;
  if (std::string_view(architecture.model_type) != "qwen2")
    config["attention_bias"] = file.find_tensor("blk.0.attn_q.bias") != nullptr;
  config["attention_dropout"] = 0.0;
  add_token_ids(file, config);
  config["head_dim"] = gguf_head_dim(file);
  config["hidden_act"] = "silu";
  config["hidden_size"] = get_positive(file, "embedding_length");
  config["initializer_range"] = 0.02;
  config["intermediate_size"] = get_positive(file, "feed_forward_length");
  config["max_position_embeddings"] = get_positive(file, "context_length");
  if (architecture.permutes_qk) config["mlp_bias"] = file.find_tensor("blk.0.ffn_up.bias") != nullptr;
  config["num_attention_heads"] = heads;
  config["num_hidden_layers"] = get_positive(file, "block_count");
  config["num_key_value_heads"] = positive_or(file, "attention.head_count_kv", heads);
  config["rms_norm_eps"] = as_written(*epsilon);
  config["rope_scaling"] = rope_scaling(file, theta);
  config["rope_theta"] = theta;
  if (&architecture == &kMistral) config["sliding_window"] = get_positive(file, "attention.sliding_window");
  config["tie_word_embeddings"] = file.find_tensor("output.weight") == nullptr;
  config["torch_dtype"] = name_of(dtype);
  config["use_cache"] = true;
  config["vocab_size"] = embedding->shape[0];
  return config;
}

Json gguf_generation_config(const GgufFile& file) {
  Json config{{"_from_model_config", true}};
  add_token_ids(file, config);
  // A chat model may end a turn with another token than a document.
  const auto turn = file.find_integer("tokenizer.ggml.eot_token_id");
  if (turn && config.contains("eos_token_id") && config["eos_token_id"] != *turn)
    config["eos_token_id"] = {config["eos_token_id"], *turn};
  return config;
}

std::optional<std::string> gguf_parameter_name(const GgufFile& file, std::string_view tensor) {
  if (tensor == "rope_freqs.weight") return std::nullopt;  // config.json says it (rope_scaling)
  const size_t dot = tensor.rfind('.');
  if (dot != std::string_view::npos && (tensor.substr(dot) == ".weight" || tensor.substr(dot) == ".bias")) {
    const std::string_view stem = tensor.substr(0, dot);
    if (const auto* name = find_name(kModelNames, stem)) return fmt::format("{}{}", *name, tensor.substr(dot));
    int layer = -1;
    if (stem.starts_with("blk.")) {
      const auto parsed = std::from_chars(stem.data() + 4, stem.data() + stem.size(), layer);
      const std::string_view rest(parsed.ptr, static_cast<size_t>(stem.data() + stem.size() - parsed.ptr));
      const auto* name = parsed.ec == std::errc{} && layer >= 0 && rest.starts_with('.')
                             ? find_name(kLayerNames, rest.substr(1))
                             : nullptr;
      if (name) return fmt::format("model.layers.{}.{}{}", layer, *name, tensor.substr(dot));
    }
  }
  fail(ErrorCode::unsupported, "{}: tensor '{}' has no place in a {} model", file.source(), tensor,
       gguf_architecture(file).model_type);
}

}  // namespace nibble
