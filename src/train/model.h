// A frozen model with an adapter, ready to be differentiated: the same ModelSpec that the decoder runs, on the tape.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "adapters/lora.h"
#include "autograd/tape.h"
#include "models/decoder.h"
#include "models/layer.h"
#include "nn/dora.h"
#include "nn/relative_bias.h"
#include "nn/rope.h"
#include "train/host_store.h"
#include "train/loss.h"

namespace nibble::train {

/// Sequences one after the other; they do not see each other.
struct Batch {
  std::vector<int32_t> ids;
  std::vector<int32_t> targets;  // what each position is to predict; below zero: nothing
  std::vector<int64_t> lengths;  // of the sequences
  // For an encoder-decoder: what each sequence's encoder reads, in the same order.
  std::vector<int32_t> source_ids = {};
  std::vector<int64_t> source_lengths = {};

  int64_t target_count() const;
};

/// Borrows the decoder and the adapter, whose gradients it fills. One call at a time.
class TrainableModel {
 public:
  /// `has_activation_offloading`: inputs of checkpointed layers wait in main memory; on a GPU alone.
  TrainableModel(const models::Decoder& base, adapters::Adapter& adapter, bool has_gradient_checkpointing,
                 bool has_activation_offloading = false);

  /// The sum of the targets' losses, to each of which the experts' load-balancing loss is added if the model asks for
  /// it. Their gradient, times `scale`, is added to the adapter's; `seed` draws dropout.
  double accumulate_gradients(const Batch& batch, uint64_t seed, float scale);
  /// The sum of the targets' losses, without dropout and balance.
  double evaluate(const Batch& batch);

 private:
  struct Pass;
  struct Bias;
  struct Attached;
  struct MlpLinears;
  autograd::Var run(Pass& pass) const;
  autograd::Var run_embedding(Pass& pass, const std::vector<int32_t>& ids) const;
  autograd::Var run_layers(Pass& pass, size_t begin, size_t end, autograd::Var x) const;
  autograd::Var run_layer(autograd::Tape& tape, const Pass& pass, size_t index, const autograd::Var& x) const;
  autograd::Var run_attention(autograd::Tape& tape, const Pass& pass, size_t index, const autograd::Var& x) const;
  autograd::Var run_cross_attention(autograd::Tape& tape, const Pass& pass, size_t index, const autograd::Var& x) const;
  autograd::Var run_mlp(autograd::Tape& tape, const Pass& pass, const models::MlpSpec& spec, const MlpLinears& linears,
                        const autograd::Var& x, uint64_t salt, bool needs_value) const;
  autograd::Var run_experts(autograd::Tape& tape, const Pass& pass, size_t index, const autograd::Var& x) const;
  autograd::Var run_mlp_rows(autograd::Tape& tape, const Pass& pass, size_t index, const autograd::Var& x,
                             bool needs_value) const;
  /// `salt`: another makes other dropout.
  autograd::Var run_linear(autograd::Tape& tape, const Pass& pass, const Attached& linear, const autograd::Var& x,
                           uint64_t salt = 0, bool needs_value = true) const;
  autograd::Var run_norm(autograd::Tape& tape, const std::optional<nn::Norm>& norm, const autograd::Var& x) const;
  double run_loss(Pass& pass, const autograd::Var& x) const;
  void bind(adapters::Adapter& adapter);
  void bind_layer(adapters::Adapter& adapter, const models::LayerSpec& layer, const std::string& prefix,
                  uint64_t& number);
  nn::DenseWeight weight_in_use(const autograd::Var& trained);
  void refresh();
  const int32_t* row_numbers(int64_t rows);
  void record_scaled(autograd::Tape& tape) const;
  Attached attach(adapters::Adapter& adapter, nn::Linear& linear, const std::string& path);
  void attach_norm(const adapters::Adapter& adapter, std::optional<nn::Norm>& norm, const std::string& prefix,
                   const models::NormSpec& spec);
  autograd::Var trained(const adapters::Adapter& adapter, const std::string& name) const;
  void record_own(autograd::Tape& tape, const Attached& linear, const autograd::Var& x, const autograd::Var& y) const;
  void record_rows(autograd::Tape& tape, const autograd::Var& x, const autograd::Var& table,
                   const std::vector<int32_t>& ids, float scale) const;
  Bias make_bias(size_t index, const Batch& batch, autograd::Tape& tape) const;
  Pass make_pass(const Batch& batch, bool is_training, uint64_t seed, float scale) const;

  /// A linear layer with its update, if it has one, and what is trained of itself.
  struct Attached {
    const nn::Linear* layer = nullptr;
    const nn::Lora* lora = nullptr;
    uint64_t number = 0;                   // for its own dropout
    const nn::DoraParts* parts = nullptr;  // if the update is DoRA's
    autograd::Var weight = nullptr, bias = nullptr;
  };
  struct NormVariables {
    autograd::Var weight, bias;
  };
  /// A trained weight, and its copy in the activations' type.
  struct Rounded {
    autograd::Var from;
    Tensor to;
  };
  /// A trained norm's weight, and it times a factor, as the norm uses it.
  struct Scaled {
    autograd::Var from, leaf;
    float scale;
  };
  struct AttentionLinears {
    Attached q, k, v, qkv, out;
  };
  struct MlpLinears {
    Attached gate, up, gate_up, down;
  };
  struct LayerLinears {
    AttentionLinears attention, cross;
    Attached router;
    std::vector<MlpLinears> mlps;  // one, or one per expert
  };

  const models::Decoder& base_;
  bool has_gradient_checkpointing_;
  double balance_loss_ = 0;  // factor of the experts'
  DType dtype_;              // of activations
  std::vector<nn::Rope> ropes_;
  std::vector<nn::RelativeBias> relative_biases_;
  std::vector<autograd::Var> relative_variables_;  // of each, if it is trained
  size_t encoder_layers_ = 0;                      // the first of these layers
  std::vector<models::Layer> layers_;
  std::vector<LayerLinears> linears_;
  Tensor embed_, positions_;
  Tensor alibi_;                                       // f32 (heads), or empty
  autograd::Var embed_variable_, positions_variable_;  // null where they are not trained
  nn::Linear project_in_, project_out_;
  Attached into_, out_of_;  // the projections
  Head head_;
  std::deque<nn::DoraParts> parts_;
  std::vector<Rounded> rounded_;
  std::vector<Scaled> scaled_;
  Tensor row_numbers_;                                        // 0, 1, ...: as many as were asked for
  std::unique_ptr<HostStore> store_;                          // of layers' inputs, or null
  std::unordered_map<const nn::Norm*, NormVariables> norms_;  // those that are trained
  std::optional<nn::Norm> embed_norm_, encoder_norm_, final_norm_;
};

}  // namespace nibble::train
