// Phi3ForCausalLM (Phi-3, Phi-3.5, Phi-4): Llama with q, k, v and gate, up each in one projection, and long-range
// ropes.
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {
namespace {

/// The config with rope types of older files under today's name.
Json with_rope_type(const ConfigReader& config) {
  Json json = config.json();
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* rope = config.find_object(key);
    if (!rope) continue;
    const ConfigReader reader(*rope, config.source());
    const std::string_view type_key = reader.first_of({"rope_type", "type"});
    const std::string type = reader.text_or(type_key, "default");
    if (type == "su" || type == "yarn")
      json[key][std::string(type_key)] = "longrope";
    else if (type != "default" && type != "longrope")
      reader.refuse(type_key, type, "default or longrope");
  }
  return json;
}

}  // namespace

ModelSpec phi3(const ConfigReader& given) {
  const Json json = with_rope_type(given);
  const ConfigReader config(json, given.source());
  LlamaFamily family{.name = "Phi3"};
  family.default_eps = 1e-5;
  family.default_max_positions = 4096;
  family.default_original_positions = 4096;
  family.default_pad = 32000;
  if (const auto window = config.find_integer("sliding_window", 1, kMaxPositions))
    family.windows.assign(static_cast<size_t>(config.integer("num_hidden_layers", 1, kMaxLayers)), *window);

  const int64_t hidden = config.integer("hidden_size", 1, kMaxWidth);
  const int64_t width = config.integer("intermediate_size", 1, kMaxWidth);
  const double p = config.number_or("resid_pdrop", 0, 0, 1);
  family.change_layer = [=](int64_t, LayerSpec& layer, ModuleSpec& tree) {
    AttentionSpec& attention = layer.attention;
    attention.q = attention.k = attention.v = "";
    attention.qkv = "self_attn.qkv_proj";
    const int64_t q = attention.heads * attention.head_dim, kv = attention.kv_heads * attention.head_dim;
    tree.children[0].children = {linear("o_proj", q, hidden, false), linear("qkv_proj", hidden, q + 2 * kv, false)};
    layer.mlp.gate = layer.mlp.up = "";
    layer.mlp.gate_up = "mlp.gate_up_proj";
    ModuleSpec act = tree.children[1].children.back();
    act.name = "activation_fn";
    tree.children[1].children = {linear("gate_up_proj", hidden, 2 * width, false),
                                 linear("down_proj", width, hidden, false), act};
    tree.children.push_back(dropout("resid_attn_dropout", p));
    tree.children.push_back(dropout("resid_mlp_dropout", p));
  };
  ModelSpec spec = build_llama_family(config, family);
  const nn::RopeSpec& rope = spec.ropes[0];
  if (rope.kind == nn::RopeKind::longrope) spec.renewal_length = rope.original_max_position_embeddings;
  return spec;
}

}  // namespace nibble::models
