// Norms, rope, cache, activations and embedding against the reference.
#include "kernels/cpu/op_case.h"

namespace nibble::kernels::cpu::testing {
namespace {

constexpr double kTolerance = 2e-6;

std::string label(const char* entry, int64_t rows, int64_t cols) {
  return std::string(entry) + " (" + std::to_string(rows) + ", " + std::to_string(cols) + ")";
}

TEST(Layer, NormsAgree) {
  Random random(1);
  for (const int64_t rows : {1, 2, 37})
    for (const int64_t cols : {1, 3, 8, 15, 64, 100, 576, 4096, 4099})
      for (const float scale : {1.0f, 1e-4f, 1e4f}) {
        const Buffer x = random_buffer(random, DType::f32, rows * cols, scale);
        const Buffer weight = random_buffer(random, DType::f32, cols), bias = random_buffer(random, DType::f32, cols);
        const Buffer random_sum = random_buffer(random, DType::f32, rows * cols);
        for (const float offset : {0.0f, 1.0f})
          check({label("rms_norm", rows, cols),
                 [&](const Kernels& k, const Context& c) {
                   Outputs out{Buffer(DType::f32, rows * cols)};
                   k.rms_norm(c, {x.as<float>(), weight.as<float>(), rows, cols, 1e-5f, offset, out[0].as<float>()});
                   return out;
                 },
                 kTolerance});
        check({label("rms_norm added", rows, cols),
               [&](const Kernels& k, const Context& c) {
                 Outputs out{random_sum};
                 k.rms_norm(c, {x.as<float>(), weight.as<float>(), rows, cols, 1e-5f, 0, out[0].as<float>(), true});
                 return out;
               },
               kTolerance});
        if (cols == 1) continue;  // x - mean is all rounding
        for (const float* b : {bias.as<float>(), static_cast<const float*>(nullptr)})
          check({label("layer_norm", rows, cols),
                 [&](const Kernels& k, const Context& c) {
                   Outputs out{x};  // in place
                   k.layer_norm(c, {out[0].as<float>(), weight.as<float>(), b, rows, cols, 1e-5f, out[0].as<float>()});
                   return out;
                 },
                 2e-5});
        check({label("layer_norm of heads", rows, cols),
               [&](const Kernels& k, const Context& c) {
                 Outputs out{Buffer(DType::f32, rows * cols)};
                 k.layer_norm(c, {x.as<float>(), random_sum.as<float>(), x.as<float>(), rows, cols, 1e-5f,
                                  out[0].as<float>(), rows});
                 return out;
               },
               2e-5});
      }
}

TEST(Layer, RopeAgrees) {
  Random random(2);
  for (const bool interleaved : {false, true})
    for (const int64_t rotary : {2, 16, 24, 64, 80})
      for (const int64_t tokens : {1, 5, 130}) {
        const int64_t heads = 3, dim = 80, stride = heads * dim + 7;
        const Buffer x = random_buffer(random, DType::f32, tokens * stride);
        const Buffer cos = random_buffer(random, DType::f32, tokens * rotary / 2),
                     sin = random_buffer(random, DType::f32, tokens * rotary / 2);
        check({label("rope", tokens, rotary),
               [&](const Kernels& k, const Context& c) {
                 Outputs out{x};
                 k.rope(c, {out[0].as<float>(), stride, cos.as<float>(), sin.as<float>(), tokens, heads, dim, rotary,
                            interleaved});
                 return out;
               },
               kTolerance});
      }
}

TEST(Layer, CacheAppendAgrees) {
  Random random(3);
  for (const DType dtype : kFloatTypes)
    for (const int64_t dim : {1, 40, 64, 100})
      for (const int64_t tokens : {1, 3, 200}) {
        const int64_t kv_heads = 3, past = 11, capacity = 256, stride = kv_heads * dim + 5;
        const Buffer x = random_buffer(random, DType::f32, tokens * stride);
        check(
            {label("cache_append", tokens, dim), [&](const Kernels& k, const Context& c) {
               Outputs out{Buffer(dtype, kv_heads * capacity * dim)};
               k.cache_append(c, {x.as<float>(), stride, out[0].data(), dtype, capacity, tokens, past, kv_heads, dim});
               return out;
             }});
      }
}

TEST(Layer, ActivationsAgree) {
  Random random(4);
  for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                      Activation::quick_gelu, Activation::tanh_})
    for (const int64_t rows : {1, 3, 40})
      for (const int64_t cols : {1, 7, 64, 1536}) {
        const int64_t stride = 2 * cols + 1;
        Buffer x = random_buffer(random, DType::f32, rows * stride, 4);
        constexpr float kSpecials[] = {0.0f, -0.0f, 100.0f, -100.0f, 1e30f, -1e30f, 1e-30f, -88.0f, 88.5f, NAN};
        for (int64_t i = 0; i < std::min<int64_t>(10, cols); ++i) x.set(i, kSpecials[i]);
        for (const bool gated : {false, true})
          check({label("activate", rows, cols) + std::to_string(int(activation)),
                 [&](const Kernels& k, const Context& c) {
                   Outputs out{Buffer(DType::f32, rows * cols)};
                   k.activate(c, {x.as<float>(), gated ? x.as<float>() + cols : nullptr, stride, rows, cols, activation,
                                  out[0].as<float>()});
                   return out;
                 },
                 kTolerance});
      }
}

TEST(Layer, ActivateWorksInPlace) {
  Random random(5);
  const int64_t rows = 50, cols = 300;
  const Buffer x = random_buffer(random, DType::f32, rows * 2 * cols);
  check({"activate in place",
         [&](const Kernels& k, const Context& c) {
           Outputs out{x};
           float* gate = out[0].as<float>();
           k.activate(c, {gate, gate + cols, 2 * cols, rows, cols, Activation::silu, gate});
           return out;
         },
         kTolerance});
}

TEST(Layer, EmbedAgrees) {
  Random random(6);
  for (const DType dtype : kFloatTypes)
    for (const int64_t cols : {1, 33, 576}) {
      const int64_t vocab = 50;
      const Buffer table = random_buffer(random, dtype, vocab * cols);
      std::vector<int32_t> ids{49, 0, 7, 7, 31};
      for (int i = 0; i < 100; ++i) ids.push_back(i % 50);
      const auto count = static_cast<int64_t>(ids.size());
      check({label("embed", count, cols), [&](const Kernels& k, const Context& c) {
               Outputs out{Buffer(DType::f32, count * cols)};
               k.embed(c, {table.data(), dtype, ids.data(), count, cols, 1.7f, out[0].as<float>()});
               return out;
             }});
      const Buffer sum = random_buffer(random, DType::f32, count * cols);
      check({label("embed added", count, cols), [&](const Kernels& k, const Context& c) {
               Outputs out{sum};
               k.embed(c, {table.data(), dtype, ids.data(), count, cols, 1.7f, out[0].as<float>(), true});
               return out;
             }});
    }
}

TEST(Layer, SplitHeadsAgrees) {
  Random random(7);
  struct Heads {
    int64_t groups, q, kv;
  };
  for (const Heads heads : {Heads{1, 4, 4}, Heads{1, 6, 2}, Heads{5, 1, 1}, Heads{3, 4, 1}})
    for (const int64_t dim : {1, 7, 64})
      for (const int64_t tokens : {1, 3, 90}) {
        const int64_t q = tokens * heads.groups * heads.q * dim, kv = tokens * heads.groups * heads.kv * dim;
        const Buffer x = random_buffer(random, DType::f32, q + 2 * kv);
        check({label("split_heads", tokens, dim), [&](const Kernels& k, const Context& c) {
                 Outputs out{Buffer(DType::f32, q), Buffer(DType::f32, kv), Buffer(DType::f32, kv)};
                 k.split_heads(c, {x.as<float>(), tokens, heads.groups, heads.q, heads.kv, dim, out[0].as<float>(),
                                   out[1].as<float>(), out[2].as<float>()});
                 return out;
               }});
      }
}

TEST(Layer, SoftcapAgrees) {
  Random random(8);
  for (const int64_t count : {1, 15, 64, 50000}) {
    const Buffer x = random_buffer(random, DType::f32, count, 40);
    check({label("softcap", 1, count),
           [&](const Kernels& k, const Context& c) {
             Outputs out{x};
             k.softcap(c, {out[0].as<float>(), count, 30.0f});
             return out;
           },
           2e-5});
  }
}

TEST(Layer, RouteExpertsAgrees) {
  Random random(9);
  for (const int64_t experts : {1, 8, 61})
    for (const int64_t top_k : {int64_t{1}, std::min<int64_t>(2, experts), experts})
      for (const bool normalize : {false, true}) {
        const int64_t tokens = 130;
        Buffer logits = random_buffer(random, DType::f32, tokens * experts, 3);
        for (int64_t e = 0; e < experts; ++e) logits.set(e, 0.5f);  // a token whose experts are all equal
        check({label("route_experts", experts, top_k),
               [&](const Kernels& k, const Context& c) {
                 std::vector<int32_t> ids(static_cast<size_t>(tokens * top_k), -1);
                 Outputs out{Buffer(DType::f32, tokens * top_k), Buffer(DType::f32, tokens * top_k)};
                 k.route_experts(
                     c, {logits.as<float>(), tokens, experts, top_k, normalize, ids.data(), out[0].as<float>()});
                 for (int64_t i = 0; i < tokens * top_k; ++i) out[1].set(i, static_cast<float>(ids[i]));
                 return out;
               },
               kTolerance});
      }
}

TEST(Layer, ScatterAddRowsAgrees) {
  Random random(10);
  for (const int64_t cols : {1, 7, 64, 1000}) {
    std::vector<int32_t> rows;
    for (int32_t i = 0; i < 60; ++i) rows.push_back(i * 7 % 61);
    const auto count = static_cast<int64_t>(rows.size());
    const Buffer x = random_buffer(random, DType::f32, count * cols),
                 sum = random_buffer(random, DType::f32, 61 * cols);
    const Buffer weights = random_buffer(random, DType::f32, count);
    check({label("scatter_add_rows", count, cols), [&](const Kernels& k, const Context& c) {
             Outputs out{sum};
             k.scatter_add_rows(c, {x.as<float>(), rows.data(), weights.as<float>(), count, cols, out[0].as<float>()});
             return out;
           }});
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu::testing
