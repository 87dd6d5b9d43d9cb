// include/nibble/plan.h: peak memory of a fine-tuning run, from what each op of src/train keeps for the way back.
#include <algorithm>
#include <cmath>

#include "adapters/lora.h"
#include "api/planned_model.h"
#include "base/checked.h"
#include "device/cpu.h"
#include "models/module_tree.h"
#include "models/quantization.h"
#include "models/summary.h"
#include "nibble/plan.h"
#include "optim/family.h"

namespace nibble {
namespace {

using api::PlannedModel;

constexpr int64_t kMiB = int64_t{1} << 20;
/// Logits that exist at a time (src/train/loss.cpp).
constexpr int64_t kChunkLogits = 4 * kMiB, kGpuChunkLogits = 32 * kMiB;
constexpr int64_t kMlpRows = 8192;
/// On a GPU: the matrix library's workspace, and most of a panel of decoded weights (src/kernels/cuda/
/// matmul_gradient.cu); the driver's context; an optimizer's pages.
constexpr int64_t kGpuLibrary = 33 * kMiB, kGpuPanel = 128 * kMiB, kGpuContext = 400 * kMiB,
                  kOptimizerPages = 48 * kMiB;
/// On a CPU: the program, its tokenizer and threads, and what the heap keeps; of small models it is a good part.
constexpr int64_t kProcess = 28 * kMiB;

/// What the adapter of a model adds: its parameters, and the states of its optimizer.
struct AdapterSizes {
  int64_t parameters = 0, states_bytes = 0, absmax_bytes = 0;
  double ranks_a_layer = 0;  // sum of ranks over the modules of a layer
};

AdapterSizes adapter_sizes(const PlannedModel& model, const TrainingPlanOptions& options) {
  const optim::Choice choice = optim::choose(optim::class_of_optim(options.optim));
  const int64_t states = 1 + (choice.family->has_variance ? 1 : 0) + (choice.family->has_slow ? 1 : 0);
  const int64_t least = choice.bits == 8 ? choice.family->defaults.min_8bit_size : INT64_MAX;
  AdapterSizes sizes;
  const auto add = [&](int64_t count) {
    sizes.parameters = checked_add(sizes.parameters, count, "adapter");
    sizes.states_bytes += states * count * (count >= least ? 1 : 4);
    if (count >= least) sizes.absmax_bytes += states * 4 * ceil_div(count, kernels::kStateBlock);
  };
  double ranks = 0;
  for (const std::string& module : adapters::targeted_modules(model.spec, options.lora)) {
    const Shape shape = models::weight_shape(*models::find_module(model.spec, module));
    const int64_t rank = adapters::rank_and_scale(options.lora, module).rank;
    add(checked_mul(rank, shape[1], module));
    add(checked_mul(rank, shape[0], module));
    ranks += double(rank);
  }
  sizes.ranks_a_layer = ranks / double(model.spec.layers.size());
  return sizes;
}

/// Values of one token in one layer: what is kept outside of the MLP and inside, where gradients take as much again at
/// the worst moment, which is that of the MLP's activation.
struct LayerWidths {
  int64_t outer = 0, inner = 0;
  int64_t back = 0;  // attention's way back, in blocks of a GPU that the MLP's leave behind
};

LayerWidths widths_of(const models::ModelSpec& spec, const models::LayerSpec& layer) {
  const models::AttentionSpec& attention = layer.attention;
  const int64_t q = attention.heads * attention.head_dim, kv = attention.kv_heads * attention.head_dim;
  int64_t norms = 0;
  for (const models::NormSpec* norm : {&layer.attention_norm, &layer.mlp_norm, &layer.attention_out_norm,
                                       &layer.mlp_out_norm, &layer.attention_sum_norm, &layer.mlp_sum_norm})
    norms += *norm ? 1 : 0;
  const bool is_gated = !layer.mlp.gate.empty() || !layer.mlp.gate_up.empty();
  LayerWidths widths;
  // Norms and the sum after attention; q, k, v and what attention gives (all twice if one projection made q, k and v).
  widths.outer = (norms + 1) * spec.hidden_size + 2 * q + 2 * kv;
  if (!attention.qkv.empty()) widths.outer += q + 2 * kv;
  widths.inner = (is_gated ? 3 : 2) * layer.mlp.intermediate_size;
  widths.back = 2 * kv + (kv < q ? q : 0);
  return widths;
}

/// The widest scratch of a GPU's products: a weight that is not stored as bf16 is decoded to it in panels, and fp32
/// activations are rounded.
int64_t product_scratch(const PlannedModel& model, int64_t tokens, int64_t element) {
  const models::QuantizationPlan plan = models::plan_quantization(model.spec, model.quantization);
  int64_t most = 0;
  models::for_each_module(model.spec, [&](const std::string& path, const models::ModuleSpec& module) {
    if (module.kind != models::ModuleKind::linear) return;
    const Shape shape = models::weight_shape(module);
    const bool is_decoded = plan.is_quantized(path) || model.dtype != DType::bf16;
    const int64_t panel = is_decoded ? std::min(kGpuPanel, checked_mul(shape[0], 2 * shape[1], path)) : 0;
    const bool is_chunked = shape[0] == model.spec.vocab_size;  // the head
    const int64_t rows = is_chunked ? std::min(tokens, std::max<int64_t>(1, kGpuChunkLogits / shape[0])) : tokens;
    most = std::max(most, panel + (element == 4 ? rows * std::max(shape[0], shape[1]) * 2 : 0));
  });
  return kGpuLibrary + most;
}

/// Activations at the worst moment of a step on `tokens` tokens.
void add_activations(const PlannedModel& model, const TrainingPlanOptions& options, double ranks, TrainingPlan& plan) {
  const models::ModelSpec& spec = model.spec;
  const int64_t tokens = checked_mul(options.max_length, options.per_device_train_batch_size, "tokens of a batch");
  const int64_t element = options.is_gpu && options.has_bf16 && model.dtype != DType::f32 ? 2 : 4;
  const auto bytes = [&](int64_t width) { return checked_mul(tokens, width * element, "activations"); };
  const bool is_checkpointed = options.gradient_checkpointing;
  const bool is_offloaded = is_checkpointed && options.activation_offloading && options.is_gpu;
  // Checkpointed MLPs run on so many rows at a time, if there are twice as many (src/train/model.cpp).
  const int64_t mlp_rows = is_checkpointed && tokens >= 2 * kMlpRows ? kMlpRows : tokens;
  const int64_t apart = mlp_rows < tokens ? bytes(spec.hidden_size) : 0;  // the gradient of the MLP's whole input
  int64_t worst = 0;
  plan.kept_bytes = bytes(spec.hidden_size);  // the embedded tokens
  for (const models::LayerSpec& layer : spec.layers) {
    const LayerWidths widths = widths_of(spec, layer);
    const int64_t outer = widths.outer + std::llround(ranks), whole = outer + widths.inner + spec.hidden_size;
    int64_t& kept = is_offloaded ? plan.host_bytes : plan.kept_bytes;
    kept = checked_add(kept, bytes(is_checkpointed ? spec.hidden_size : whole), "activations");
    const int64_t inner_bytes = checked_mul(mlp_rows, widths.inner * element, "activations");
    const int64_t back = options.is_gpu ? bytes(widths.back) : 0;
    worst = std::max(worst, bytes(spec.hidden_size) + inner_bytes +
                                (is_checkpointed ? bytes(outer) + back + inner_bytes + apart : 0));
  }
  if (is_offloaded) plan.kept_bytes += bytes(spec.hidden_size);  // of a layer's input, one more is on its way
  for (const nn::RopeSpec& rope : spec.ropes) plan.kept_bytes += tokens * 3 * (rope.rotary_dim / 2) * 4;
  const int64_t limit = options.is_gpu ? kGpuChunkLogits : kChunkLogits;
  const int64_t rows = std::min(tokens, std::max<int64_t>(1, limit / spec.vocab_size));
  const int64_t capped = spec.logit_softcap > 0 ? rows * spec.vocab_size * (element == 4 ? 4 : 8) : 0;  // in fp32
  const int64_t logits = rows * (spec.hidden_size + spec.vocab_size) * element + capped;
  plan.working_bytes = std::max(worst, bytes(2 * spec.hidden_size) + logits);
  plan.workspace_bytes = kProcess;
  if (!options.is_gpu) return;
  plan.working_bytes = worst + logits;  // blocks of so different sizes do not serve for each other
  plan.workspace_bytes = kGpuContext + product_scratch(model, tokens, element);
}

TrainingPlan predict(const PlannedModel& model, const TrainingPlanOptions& options) {
  TrainingPlan plan;
  const ModelSummary summary =
      models::summarize(model.spec, models::plan_quantization(model.spec, model.quantization), model.dtype);
  plan.weights_bytes = std::llround(
      double(checked_add(summary.memory_footprint_bytes, summary.statistics_bytes, "weights")) * model.scale);
  const AdapterSizes adapter = adapter_sizes(model, options);
  plan.adapter_bytes = plan.gradient_bytes = 4 * adapter.parameters;
  plan.optimizer_bytes = adapter.states_bytes + adapter.absmax_bytes;
  if (options.is_gpu && options.optim.starts_with("paged")) {
    plan.host_bytes += adapter.states_bytes;
    plan.optimizer_bytes = adapter.absmax_bytes + kOptimizerPages;
  }
  add_activations(model, options, adapter.ranks_a_layer, plan);
  plan.total_bytes = plan.weights_bytes + plan.adapter_bytes + plan.gradient_bytes + plan.optimizer_bytes +
                     plan.kept_bytes + plan.working_bytes + plan.workspace_bytes;
  return plan;
}

/// The changes that would save memory, from the options as they are.
std::vector<std::pair<std::string, void (*)(PlannedModel&, TrainingPlanOptions&)>> changes(
    const PlannedModel& model, const TrainingPlanOptions& options) {
  std::vector<std::pair<std::string, void (*)(PlannedModel&, TrainingPlanOptions&)>> list;
  const auto to_nf4 = [](PlannedModel& of, TrainingPlanOptions&) {
    of.quantization = {.load_in_4bit = true, .bnb_4bit_quant_type = "nf4"};
  };
  const auto to_nested = [](PlannedModel& of, TrainingPlanOptions&) {
    of.quantization.bnb_4bit_use_double_quant = true;
  };
  if (!model.quantization.load_in_4bit)
    list.emplace_back("--load-in-4bit --bnb-4bit-quant-type nf4", to_nf4);
  else if (!model.quantization.bnb_4bit_use_double_quant)
    list.emplace_back("--bnb-4bit-use-double-quant", to_nested);
  if (!options.gradient_checkpointing)
    list.emplace_back("--gradient-checkpointing",
                      [](PlannedModel&, TrainingPlanOptions& of) { of.gradient_checkpointing = true; });
  if (options.is_gpu && options.gradient_checkpointing && !options.activation_offloading)
    list.emplace_back("--activation-offloading",
                      [](PlannedModel&, TrainingPlanOptions& of) { of.activation_offloading = true; });
  if (options.per_device_train_batch_size > 1)
    list.emplace_back("--per-device-train-batch-size 1 (more --gradient-accumulation-steps)",
                      [](PlannedModel&, TrainingPlanOptions& of) { of.per_device_train_batch_size = 1; });
  if (options.is_gpu && !options.optim.starts_with("paged"))
    list.emplace_back("--optim paged_adamw_8bit",
                      [](PlannedModel&, TrainingPlanOptions& of) { of.optim = "paged_adamw_8bit"; });
  else if (options.optim.find("8bit") == std::string::npos)
    list.emplace_back("--optim adamw_8bit", [](PlannedModel&, TrainingPlanOptions& of) { of.optim = "adamw_8bit"; });
  return list;
}

TrainingPlan plan_model(const PlannedModel& model, const TrainingPlanOptions& options) {
  TrainingPlan plan = predict(model, options);
  plan.available_bytes = options.memory_bytes.value_or(device::describe_cpu().free_memory_bytes);
  plan.fits = plan.total_bytes <= plan.available_bytes;
  const auto add = [&](const std::string& what, const PlannedModel& changed_model, const TrainingPlanOptions& changed) {
    const int64_t total = predict(changed_model, changed).total_bytes;
    plan.ways.push_back({what, total, total <= plan.available_bytes});
  };
  PlannedModel all_model = model;
  TrainingPlanOptions all = options;
  const auto list = changes(model, options);
  for (const auto& [what, change] : list) {
    PlannedModel changed_model = model;
    TrainingPlanOptions changed = options;
    change(changed_model, changed);
    change(all_model, all);
    add(what, changed_model, changed);
  }
  if (list.size() > 1) add("all of these", all_model, all);
  return plan;
}

void check(const TrainingPlanOptions& options) {
  options.quantization_config.validate();
  options.lora.validate();
  require(!options.activation_offloading || (options.gradient_checkpointing && options.is_gpu),
          "activation_offloading: expected gradient_checkpointing, and a GPU's memory to plan for");
  require(options.max_length > 0, "max_length: found {}, expected a positive number", options.max_length);
  require(options.per_device_train_batch_size > 0, "per_device_train_batch_size: found {}, expected a positive number",
          options.per_device_train_batch_size);
}

}  // namespace

TrainingPlan plan_training(const std::filesystem::path& model, const TrainingPlanOptions& options) {
  check(options);
  return plan_model(api::planned_model(model, options.quantization_config, options.dtype), options);
}

TrainingPlan plan_training(int64_t parameters, const TrainingPlanOptions& options) {
  check(options);
  return plan_model(api::planned_model(parameters, options.quantization_config, options.dtype), options);
}

}  // namespace nibble
