// The encoder of an encoder-decoder: one pass over a source, then the keys and values that the decoder looks at.
#include "models/layer.h"

namespace nibble::models {

nn::KvCache Decoder::encode(std::span<const int32_t> ids, Workspace& workspace, bool batch_invariant,
                            float* encoded) const {
  const auto tokens = static_cast<int64_t>(ids.size());
  const AttentionSpec& attention = spec_.encoder->layers.front().attention;
  nn::KvCache scratch(*backend_, 1, attention.kv_heads, attention.head_dim, cache_dtype());  // of one layer at a time
  scratch.reserve(tokens);
  const SequenceTokens all{&scratch, tokens, tokens};
  Pass pass = prepare({&all, 1}, ids.data(), workspace, batch_invariant);
  workspace.send_inputs(false);
  pass.hidden = pass.get(Slot::hidden, tokens * spec_.hidden_size);
  embed(pass);
  for (const Layer& layer : encoder_layers_) run_layer(pass, layer, 0);
  if (encoder_norm_) nn::run_norm(*backend_, *encoder_norm_, pass.hidden, tokens, pass.hidden);

  const AttentionSpec& cross = spec_.layers.front().cross;
  nn::KvCache source(*backend_, static_cast<int64_t>(layers_.size()), cross.kv_heads, cross.head_dim, cache_dtype());
  source.reserve(tokens);
  for (size_t i = 0; i < layers_.size(); ++i)
    fill_source(pass, layers_[i], static_cast<int64_t>(i), pass.hidden, source);
  source.set_length(tokens);
  const int64_t size_bytes = tokens * spec_.hidden_size * static_cast<int64_t>(sizeof(float));
  if (encoded) backend_->download(encoded, pass.hidden, size_bytes);
  return source;
}

}  // namespace nibble::models
