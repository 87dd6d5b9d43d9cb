// route_experts and its gradient: a handful of experts a token, so plain loops.
#include "kernels/cpu/isa/math.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

/// Whether expert a stands before b.
NIBBLE_SIMD bool precedes(const float* logits, int64_t a, int64_t b) {
  return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

void route(const RouteExpertsArgs& args, int64_t token) {
  const float* logits = args.logits + token * args.experts;
  int32_t* ids = args.ids + token * args.top_k;
  float* weights = args.weights + token * args.top_k;
  for (int64_t i = 0; i < args.top_k; ++i) {  // the best of those that stand after the one before
    int64_t best = -1;
    for (int64_t e = 0; e < args.experts; ++e)
      if ((i == 0 || precedes(logits, ids[i - 1], e)) && (best < 0 || precedes(logits, e, best))) best = e;
    ids[i] = static_cast<int32_t>(best < 0 ? i : best);  // NaN compares with nothing: any expert will do
  }
  const float largest = logits[ids[0]];
  float total = 0;
  for (int64_t e = 0; !args.normalize && e < args.experts; ++e) total += exp_one(logits[e] - largest);
  for (int64_t i = 0; i < args.top_k; ++i) {
    weights[i] = exp_one(logits[ids[i]] - largest);
    if (args.normalize) total += weights[i];
  }
  for (int64_t i = 0; i < args.top_k; ++i) weights[i] /= total;
}

/// dlogits[e] = share[e] * (dweight[e] - the mean of the chosen experts' dweights by their shares).
void route_back(const RouteExpertsGradientArgs& args, int64_t token) {
  const float* logits = args.logits + token * args.experts;
  const int32_t* ids = args.ids + token * args.top_k;
  const float* dweights = args.dweights + token * args.top_k;
  float* dlogits = args.dlogits + token * args.experts;
  for (int64_t e = 0; e < args.experts; ++e) dlogits[e] = 0;
  const float largest = logits[ids[0]];
  float total = 0, mean = 0;
  for (int64_t e = 0; !args.normalize && e < args.experts; ++e) total += exp_one(logits[e] - largest);
  for (int64_t i = 0; i < args.top_k; ++i) {
    const float share = exp_one(logits[ids[i]] - largest);
    if (args.normalize) total += share;
    mean += dweights[i] * share;
  }
  mean /= total;
  for (int64_t i = 0; i < args.top_k; ++i) dlogits[ids[i]] = dweights[i];
  for (int64_t e = 0; !args.normalize && e < args.experts; ++e)
    dlogits[e] = exp_one(logits[e] - largest) / total * (dlogits[e] - mean);
  for (int64_t i = 0; args.normalize && i < args.top_k; ++i)
    dlogits[ids[i]] = exp_one(logits[ids[i]] - largest) / total * (dlogits[ids[i]] - mean);
}

}  // namespace

void route_experts_gradient(const Context& context, const RouteExpertsGradientArgs& args) {
  for_ranges(context, args.tokens, 64, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) route_back(args, token);
  });
}

void route_experts(const Context& context, const RouteExpertsArgs& args) {
  for_ranges(context, args.tokens, 64, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) route(args, token);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
