// Cross entropy through the output head, without ever holding all logits.
#pragma once

#include <cstdint>
#include <span>

#include "autograd/tape.h"
#include "nn/linear.h"
#include "ops/backend.h"

namespace nibble::train {

/// The output head; its own variables are null where they are not trained.
struct Head {
  nn::Linear layer = {};
  autograd::Var weight = nullptr, bias = nullptr;  // what the layer holds
  float softcap = 0;                               // > 0: logits become cap * tanh(logit / cap)
};

/// The sum over positions with a target (>= 0) of -log softmax(head(x))[target]; on a recording tape, `scale` times its
/// gradient flows into x (tokens, hidden). Logits exist for a chunk of rows at a time.
double head_loss(autograd::Tape& tape, const ops::Backend& backend, const autograd::Var& x, const Head& head,
                 std::span<const int32_t> targets, float scale);

}  // namespace nibble::train
