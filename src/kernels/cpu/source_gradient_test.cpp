// Gradients that encoder-decoders and experts need: attention that sees all keys of another sequence, and routing.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "kernels/cpu/op_case.h"
#include "kernels/reference/table.h"

namespace nibble::kernels::cpu::testing {
namespace {

/// softmax(q k^T + bias) v of queries that see all keys, or those before them, and its gradients.
struct Attended {
  int64_t tokens, keys, heads = 3, dim = 12;
  bool is_causal = false, has_bias = false;
  Buffer q, k, v, dout, bias;

  Attended(int64_t token_count, int64_t key_count, bool causal, bool biased, Random& random)
      : tokens(token_count), keys(key_count), is_causal(causal), has_bias(biased) {
    q = random_buffer(random, DType::f32, tokens * heads * dim);
    k = random_buffer(random, DType::f32, keys * heads * dim);
    v = random_buffer(random, DType::f32, keys * heads * dim);
    dout = random_buffer(random, DType::f32, tokens * heads * dim);
    bias = random_buffer(random, DType::f32, heads * (2 * span() - 1));
  }
  int64_t span() const { return std::max(tokens, keys) + 2; }

  std::vector<float> forward(const float* queries, const float* ks, const float* vs, const float* biases) const {
    const Kernels& kernels = reference::table();
    std::vector<float> cached_k(static_cast<size_t>(keys * heads * dim)), cached_v(cached_k.size()),
        out(static_cast<size_t>(tokens * heads * dim));
    for (const auto& [from, to] : {std::pair{ks, &cached_k}, std::pair{vs, &cached_v}})
      kernels.cache_append({}, {from, heads * dim, to->data(), DType::f32, keys, keys, 0, heads, dim});
    AttentionSequence sequence{queries, cached_k.data(), cached_v.data(), keys, tokens, 0, out.data()};
    sequence.keys = keys;
    AttentionArgs args{&sequence, 1, heads, heads, dim, heads * dim, DType::f32, 0.3f};
    args.is_causal = is_causal;
    args.relative_bias = has_bias ? biases : nullptr;
    args.relative_span = span();
    kernels.attention({}, args);
    return out;
  }

  Outputs gradient(const Kernels& kernels, const Context& context) const {
    const std::vector<float> out = forward(q.as<float>(), k.as<float>(), v.as<float>(), bias.as<float>());
    Outputs result{Buffer(DType::f32, q.count()), Buffer(DType::f32, k.count()), Buffer(DType::f32, v.count()), bias};
    const AttentionGradientSequence sequence{
        q.as<float>(),         k.as<float>(),         v.as<float>(),         out.data(), dout.as<float>(), tokens,
        result[0].as<float>(), result[1].as<float>(), result[2].as<float>(), keys};
    AttentionGradientArgs args{&sequence, 1, heads, heads, dim, 0.3f, 0, nullptr};
    args.is_causal = is_causal;
    args.relative_bias = has_bias ? bias.as<float>() : nullptr;
    args.relative_span = span();
    args.drelative_bias = has_bias ? result[3].as<float>() : nullptr;  // added to what is there
    kernels.attention_gradient(context, args);
    return result;
  }
};

TEST(SourceGradient, AttentionToASourceAgrees) {
  Random random(21);
  for (const auto& [tokens, keys] : {std::pair{1, 1}, std::pair{9, 30}, std::pair{70, 5}, std::pair{130, 130}})
    for (const bool is_causal : {false, true})
      for (const bool has_bias : {false, true}) {
        if (is_causal && tokens != keys) continue;
        const Attended inputs(tokens, keys, is_causal, has_bias, random);
        check({"attention_gradient (" + std::to_string(tokens) + ", " + std::to_string(keys) + ")",
               [&](const Kernels& kernels, const Context& c) { return inputs.gradient(kernels, c); }, 5e-5});
      }
}

/// The slope of f along `direction`, and what a gradient says of it.
void expect_slope(const char* what, Random& random, const float* x, int64_t count, const float* gradient,
                  const std::function<double(const float*)>& f) {
  std::vector<float> ahead(x, x + count), behind = ahead;
  double expected = 0, length = 0;
  for (size_t i = 0; i < ahead.size(); ++i) {
    const auto step = static_cast<float>(0.004 * random.normal());
    ahead[i] += step;
    behind[i] -= step;
    expected += 2 * static_cast<double>(step) * static_cast<double>(gradient[i]);
    length += std::pow(static_cast<double>(gradient[i]), 2);
  }
  EXPECT_NEAR(f(ahead.data()) - f(behind.data()), expected, 2e-5 * std::sqrt(length) + 1e-6) << what;
}

TEST(SourceGradient, AttentionToASourceIsTheSlope) {
  Random random(22);
  const Attended inputs(7, 11, false, true, random);
  const Outputs gradient = inputs.gradient(reference::table(), {});
  const float *q = inputs.q.as<float>(), *k = inputs.k.as<float>(), *v = inputs.v.as<float>();
  const float* bias = inputs.bias.as<float>();
  const auto loss = [&](const float* a, const float* b, const float* c, const float* d) {
    const auto out = inputs.forward(a, b, c, d);
    double sum = 0;
    for (size_t i = 0; i < out.size(); ++i)
      sum += static_cast<double>(out[i]) * static_cast<double>(inputs.dout.as<float>()[i]);
    return sum;
  };
  expect_slope("q", random, q, inputs.q.count(), gradient[0].as<float>(),
               [&](const float* x) { return loss(x, k, v, bias); });
  expect_slope("k", random, k, inputs.k.count(), gradient[1].as<float>(),
               [&](const float* x) { return loss(q, x, v, bias); });
  expect_slope("v", random, v, inputs.v.count(), gradient[2].as<float>(),
               [&](const float* x) { return loss(q, k, x, bias); });
  std::vector<float> dbias(static_cast<size_t>(inputs.bias.count()));
  for (size_t i = 0; i < dbias.size(); ++i) dbias[i] = gradient[3].as<float>()[i] - bias[i];
  expect_slope("bias", random, bias, inputs.bias.count(), dbias.data(),
               [&](const float* x) { return loss(q, k, v, x); });
}

TEST(SourceGradient, RoutingIsTheSlope) {
  Random random(23);
  constexpr int64_t kTokens = 6, kExperts = 5, kTop = 3;
  for (const bool normalize : {false, true}) {
    const Buffer logits = random_buffer(random, DType::f32, kTokens * kExperts),
                 dweights = random_buffer(random, DType::f32, kTokens * kTop);
    std::vector<int32_t> ids(kTokens * kTop);
    std::vector<float> weights(kTokens * kTop), dlogits(kTokens * kExperts);
    const Kernels& kernels = reference::table();
    const auto loss = [&](const float* x) {
      kernels.route_experts({}, {x, kTokens, kExperts, kTop, normalize, ids.data(), weights.data()});
      double sum = 0;
      for (size_t i = 0; i < weights.size(); ++i)
        sum += static_cast<double>(weights[i]) * static_cast<double>(dweights.as<float>()[i]);
      return sum;
    };
    loss(logits.as<float>());
    const std::vector<int32_t> chosen = ids;
    kernels.route_experts_gradient({}, {logits.as<float>(), kTokens, kExperts, kTop, normalize, chosen.data(),
                                        dweights.as<float>(), dlogits.data()});
    check({std::string("route_experts_gradient, normalize ") + (normalize ? "on" : "off"),
           [&](const Kernels& k, const Context& c) {
             Outputs out{Buffer(DType::f32, logits.count())};
             k.route_experts_gradient(c, {logits.as<float>(), kTokens, kExperts, kTop, normalize, chosen.data(),
                                          dweights.as<float>(), out[0].as<float>()});
             return out;
           },
           1e-5});
    expect_slope("logits", random, logits.as<float>(), logits.count(), dlogits.data(), loss);
  }
}

TEST(SourceGradient, DotsOfRows) {
  const std::vector<float> x{1, 2, 3, 4}, y{1, 1, 10, 100, 5, 6};
  const std::vector<int32_t> rows{2, 1};
  std::vector<float> dots(2);
  reference::table().dot_rows({}, {x.data(), rows.data(), y.data(), 2, 2, dots.data()});
  EXPECT_EQ(dots, (std::vector<float>{17, 430}));
  Random random(24);
  for (const int64_t cols : {1, 33, 500}) {
    const Buffer a = random_buffer(random, DType::f32, 2 * cols), b = random_buffer(random, DType::f32, 3 * cols);
    check({"dot_rows (" + std::to_string(cols) + ")",
           [&](const Kernels& k, const Context& c) {
             Outputs out{Buffer(DType::f32, 2)};
             k.dot_rows(c, {a.as<float>(), rows.data(), b.as<float>(), 2, cols, out[0].as<float>()});
             return out;
           },
           1e-5});
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu::testing
