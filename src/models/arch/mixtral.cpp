// MixtralForCausalLM (Jiang et al., 2024): Mistral whose MLPs are experts, each of three linear layers as in the files.
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {

ModelSpec mixtral(const ConfigReader& config) {
  LlamaFamily family{.name = "Mixtral"};
  family.default_kv_heads = 8;
  family.default_max_positions = 131072;
  family.default_eps = 1e-5;
  family.default_theta = 1e6;
  if (const auto window = config.find_integer("sliding_window", 1, kMaxPositions))
    family.windows.assign(static_cast<size_t>(config.integer("num_hidden_layers", 1, kMaxLayers)), *window);

  const int64_t hidden = config.integer("hidden_size", 1, kMaxWidth);
  const int64_t width = config.integer("intermediate_size", 1, kMaxWidth);
  const int64_t count = config.integer_or("num_local_experts", 8, 1, 4096);
  const int64_t top_k = config.integer_or("num_experts_per_tok", 2, 1, count);
  const double balance_loss =
      config.flag_or("output_router_logits", false) ? config.number_or("router_aux_loss_coef", 0.001, 0, 1e6) : 0;
  // transformers 5 fuses experts into parameters that bitsandbytes leaves alone; as layers of their own, as in
  // transformers 4 and in all files, they are quantized.
  family.change_layer = [=](int64_t, LayerSpec& layer, ModuleSpec& tree) {
    layer.mlp.gate = "w1";
    layer.mlp.up = "w3";
    layer.mlp.down = "w2";
    layer.mlp.experts = {.router = "block_sparse_moe.gate",
                         .prefix = "block_sparse_moe.experts.",
                         .count = count,
                         .top_k = top_k,
                         .is_normalized = true,
                         .balance_loss = balance_loss};
    ModuleSpec act = tree.children[1].children.back();
    std::vector<ModuleSpec> experts;
    for (int64_t e = 0; e < count; ++e)
      experts.push_back(container(std::to_string(e), "MixtralBlockSparseTop2MLP",
                                  {linear("w1", hidden, width, false), linear("w2", width, hidden, false),
                                   linear("w3", hidden, width, false), act}));
    tree.children[1] =
        container("block_sparse_moe", "MixtralSparseMoeBlock",
                  {linear("gate", hidden, count, false), container("experts", "ModuleList", std::move(experts))});
  };
  return build_llama_family(config, family);
}

}  // namespace nibble::models
