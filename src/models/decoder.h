// Runs a ModelSpec: loaded weights, one forward pass over the new tokens of a batch of sequences.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "models/spec.h"
#include "models/weights.h"
#include "models/workspace.h"
#include "nibble/model.h"
#include "nn/kv_cache.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "nn/relative_bias.h"
#include "nn/rope.h"
#include "ops/backend.h"

namespace nibble::models {

/// One sequence's share of a forward pass; sequences stand one after the other in the token array.
struct SequenceTokens {
  nn::KvCache* cache;             // holds the past; has room for `tokens` more
  int64_t tokens;                 // at least 1
  int64_t length;                 // of the sequence when its whole prompt is in, of which these tokens may be a chunk
  nn::KvCache* source = nullptr;  // encoder-decoder: keys and values for cross-attention, as encode() made them
};

struct Layer;
struct Pass;

/// What an adapter changes: updates of linear layers by module name, weights of linear layers by module name, where
/// kernels reach them, and whole parameters in f32 by name, a linear layer's weight as (out, in).
struct Updates {
  std::unordered_map<std::string, nn::LowRank> layers;
  std::unordered_map<std::string, nn::Weight> weights = {};
  std::unordered_map<std::string, Tensor> parameters;
};

/// A model in memory. Immutable after loading, except that passes share its threads: one at a time.
class Decoder {
 public:
  Decoder(ModelSpec spec, Json config, std::shared_ptr<ops::Backend> backend, std::unique_ptr<Weights> weights);
  ~Decoder();

  const ModelSpec& spec() const { return spec_; }
  const ModelSummary& summary() const { return summary_; }
  /// config.json as read, with the dtype and quantization_config of what is in memory.
  const Json& config() const { return config_; }
  const Weights& weights() const { return *weights_; }
  const ops::Backend& backend() const { return *backend_; }
  int64_t vocab_size() const { return spec_.vocab_size; }
  /// Of what passes between kernels, but for the residual stream: bf16 on a GPU unless the model is float32.
  DType activations() const;
  /// Of the KV cache: f32 for a float32 model, else bf16, unless set_cache_dtype() chose another.
  DType cache_dtype() const { return cache_dtype_; }
  /// For caches made from now on; i8 is for decoders on a GPU.
  void set_cache_dtype(DType dtype) { cache_dtype_ = dtype; }
  nn::KvCache make_cache() const;

  /// From the next pass on, the model has these updates and no others; null: none. Not during a pass. After an error it
  /// has those it had. Errors: out_of_memory.
  void set_updates(std::shared_ptr<const Updates> updates);

  /// Encoder-decoder: runs the encoder on one source and returns SequenceTokens::source. `encoded`, unless it is null,
  /// gets the encoder's output (ids.size(), hidden), in main memory. Ids must be inside the vocabulary, at least one.
  nn::KvCache encode(std::span<const int32_t> ids, Workspace& workspace, bool batch_invariant,
                     float* encoded = nullptr) const;

  /// Appends the tokens to the caches (whose lengths the caller advances) and writes logits: of each sequence's last
  /// token (sequences, vocab), or of every token (tokens, vocab) if `all_logits`; none if `logits` is null.
  /// Ids must be inside the vocabulary (the caller checks). `logits` lies in main memory.
  void forward(std::span<const SequenceTokens> sequences, const int32_t* ids, Workspace& workspace, float* logits,
               bool all_logits, bool batch_invariant) const;

  // The two halves of a pass, for StepGraph. `longest`: 0, or for a pass that will be repeated by a GPU the most tokens
  // that a sequence may have by then; lengths are then read from memory that prepare() writes.

  /// What the host computes: ids, positions and angles, in the workspace's inputs.
  Pass prepare(std::span<const SequenceTokens> sequences, const int32_t* ids, Workspace& workspace,
               bool batch_invariant, int64_t longest = 0) const;
  /// All kernels, once the inputs are sent. `logits` lies where kernels write.
  void run(Pass& pass, float* logits, bool all_logits) const;

 private:
  /// All modules anew, or an exception and those there were.
  void bind(const Updates* updates);
  void embed(Pass& pass) const;
  void run_head(Pass& pass, float* logits, bool all_logits) const;

  ModelSpec spec_;
  Json config_;
  std::shared_ptr<ops::Backend> backend_;
  std::unique_ptr<Weights> weights_;
  DType cache_dtype_;
  std::shared_ptr<const Updates> updates_;
  ModelSummary summary_;
  std::vector<nn::Rope> ropes_;
  std::vector<nn::RelativeBias> relative_biases_;
  std::vector<Layer> encoder_layers_, layers_;
  std::optional<nn::Norm> embed_norm_, encoder_norm_, final_norm_;
  nn::Linear project_in_, project_out_, head_;
  Tensor embed_;      // (vocab, embedding width)
  Tensor positions_;  // (positions, hidden), or empty
  Tensor alibi_;      // f32 (heads), or empty
};

/// Reads config.json and the weights of a directory, quantizing on the way. Errors: as AutoModelForCausalLM.
std::unique_ptr<Decoder> load_decoder(const std::filesystem::path& path, const LoadOptions& options);

/// The same from parts, e.g. of a GGUF file; `source` names the config in errors.
std::unique_ptr<Decoder> load_decoder(Json config, std::string_view source,
                                      std::shared_ptr<const Checkpoint> checkpoint, const LoadOptions& options);

}  // namespace nibble::models
