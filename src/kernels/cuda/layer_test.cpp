// Norms, rope, heads, activations, experts and the cache against the reference.
#include <functional>

#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

constexpr double kTolerance = 4e-6;

/// The pointers of arrays, on whichever side an entry runs.
using Pointers = std::vector<void*>;

class LayerTest : public GpuTest {
 protected:
  /// Runs an entry on both sides over the same arrays; those from `first_output` on are compared.
  void check(const std::string& label, std::vector<Array> arrays, size_t first_output, double tolerance,
             const std::function<void(const Kernels&, const Context&, const Pointers&)>& run) {
    std::vector<Array> expected = arrays;
    Pointers host, device;
    for (Array& array : expected) host.push_back(array.host());
    for (Array& array : arrays) {
      array.upload(stream());
      device.push_back(array.device(stream()));
    }
    run(reference(), cpu, host);
    run(cuda(), context, device);
    finish(label);
    for (size_t i = 0; i < arrays.size(); ++i) {
      arrays[i].download(stream(), label);
      expect_close(expected[i], arrays[i], i < first_output ? 0 : tolerance, label + " array " + std::to_string(i));
    }
  }
};

float* f(void* pointer) { return static_cast<float*>(pointer); }
int32_t* n(void* pointer) { return static_cast<int32_t*>(pointer); }

TEST_F(LayerTest, NormsAgree) {
  Random random(1);
  for (const int64_t rows : {1, 2, 37})
    for (const int64_t cols : {1, 3, 15, 64, 100, 576, 4096, 4099})
      for (const float scale : {1.0f, 1e-4f, 1e4f}) {
        const Array x = random_array(random, DType::f32, rows * cols, scale),
                    w = random_array(random, DType::f32, cols), b = random_array(random, DType::f32, cols);
        const std::string label = "norm " + std::to_string(rows) + " " + std::to_string(cols);
        for (const bool accumulate : {false, true})
          check("rms_" + label, {x, w, accumulate ? x : Array(DType::f32, rows * cols)}, 2, kTolerance,
                [&](const Kernels& k, const Context& c, const Pointers& p) {
                  k.rms_norm(c, {f(p[0]), f(p[1]), rows, cols, 1e-5f, accumulate ? 1.0f : 0.0f, f(p[2]), accumulate});
                });
        check("rms_ in place " + label, {w, x}, 1, kTolerance,
              [&](const Kernels& k, const Context& c, const Pointers& p) {
                k.rms_norm(c, {f(p[1]), f(p[0]), rows, cols, 1e-5f, 0, f(p[1])});
              });
        if (cols == 1) continue;  // x - mean is all rounding
        for (const bool has_bias : {false, true})
          check("layer_" + label, {w, b, x}, 2, 2e-5, [&](const Kernels& k, const Context& c, const Pointers& p) {
            k.layer_norm(c, {f(p[2]), f(p[0]), has_bias ? f(p[1]) : nullptr, rows, cols, 1e-5f, f(p[2])});
          });
      }
}

TEST_F(LayerTest, NarrowActivationsAgree) {
  Random random(31);
  constexpr DType kTypes[] = {DType::f32, DType::bf16};
  for (const DType in : kTypes)
    for (const DType out : kTypes)
      for (const int64_t cols : {3, 64, 100, 576, 4096, 4099}) {
        const int64_t rows = 5;
        const double tolerance = out == DType::f32 ? 2e-5 : 8e-3;
        const Array x = random_array(random, in, rows * cols), w = random_array(random, DType::f32, cols),
                    y = random_array(random, out, rows * cols);
        for (const bool accumulate : {false, true})
          check("rms_norm", {x, w, y}, 2, tolerance, [&](const Kernels& k, const Context& c, const Pointers& p) {
            k.rms_norm(c, {p[0], f(p[1]), rows, cols, 1e-5f, 0, p[2], accumulate, in, out});
          });
        check("layer_norm", {x, w, y}, 2, tolerance, [&](const Kernels& k, const Context& c, const Pointers& p) {
          k.layer_norm(c, {p[0], f(p[1]), f(p[1]), rows, cols, 1e-5f, p[2], 1, in, out});
        });
        for (const int64_t offset : {0, 1})
          check("activate", {random_array(random, in, rows * 2 * cols, 1, offset), Array(out, rows * cols, offset)}, 1,
                tolerance, [&](const Kernels& k, const Context& c, const Pointers& p) {
                  k.activate(c, {p[0], static_cast<char*>(p[0]) + cols * size_of(in), 2 * cols, rows, cols,
                                 Activation::silu, p[1], in, out});
                });
        Array ids(DType::i32, 3);
        for (int64_t i = 0; i < 3; ++i) ids.set(i, static_cast<float>(2 * i));
        check("embed", {x, ids, Array(out, 3 * cols)}, 2, out == in ? 0 : tolerance,
              [&](const Kernels& k, const Context& c, const Pointers& p) {
                k.embed(c, {p[0], in, n(p[1]), 3, cols, 1, p[2], false, out});
              });
      }
  const int64_t tokens = 9, dim = 24, width = 3 * dim;
  check("rope", {random_array(random, DType::f32, tokens * 8), random_array(random, DType::bf16, tokens * width)}, 1,
        8e-3, [&](const Kernels& k, const Context& c, const Pointers& p) {
          k.rope(c, {p[1], width, f(p[0]), f(p[0]), tokens, 3, dim, 16, false, DType::bf16});
        });
  const int64_t q = tokens * 2 * dim, kv = tokens * dim;
  check("split_heads",
        {random_array(random, DType::bf16, q + 2 * kv), Array(DType::bf16, q), Array(DType::bf16, kv),
         Array(DType::bf16, kv)},
        1, 0, [&](const Kernels& k, const Context& c, const Pointers& p) {
          k.split_heads(c, {p[0], tokens, 1, 2, 1, dim, p[1], p[2], p[3], DType::bf16});
        });
}

TEST_F(LayerTest, RotateAppendOfNarrowActivationsAgrees) {
  Random random(32);
  for (const DType cache_dtype : {DType::bf16, DType::i8})
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const int64_t offset : {0, 1})
        for (const int64_t rotary : {0, 24, 80}) {
          const int64_t heads = 6, kv_heads = 2, dim = 80, capacity = 64, tokens = 1 + 9;
          const int64_t q_stride = (heads + 2 * kv_heads) * dim, cache = kv_heads * capacity * dim;
          std::vector<Array> arrays{random_array(random, DType::f32, tokens * rotary / 2 + 1, 1, offset),
                                    random_array(random, DType::f32, tokens * rotary / 2 + 1, 1, offset),
                                    random_array(random, dtype, tokens * q_stride, 1, offset)};
          for (int i = 0; i < 4; ++i) arrays.push_back(random_array(random, cache_dtype, cache, 1, offset));
          for (int i = 0; i < 4; ++i) arrays.push_back(random_array(random, DType::f32, kv_heads * capacity));
          check("rotate_append", arrays, 2, 8e-3, [&](const Kernels& k, const Context& c, const Pointers& p) {
            const auto sequence = [&](size_t i, int64_t count, int64_t past) {
              AttentionSequence s{};
              s.k = p[3 + 2 * i];
              s.v = p[4 + 2 * i];
              s.k_scales = f(p[7 + 2 * i]);
              s.v_scales = f(p[8 + 2 * i]);
              s.capacity = capacity;
              s.tokens = count;
              s.past = past;
              return s;
            };
            const AttentionSequence sequences[] = {sequence(0, 1, 5), sequence(1, 9, 0)};
            char* q = static_cast<char*>(p[2]);
            k.rotate_append(c, {q, q + heads * dim * size_of(dtype), q + (heads + kv_heads) * dim * size_of(dtype),
                                q_stride, q_stride, q_stride, f(p[0]), f(p[1]), rotary, false, heads, kv_heads, dim,
                                sequences, 2, cache_dtype, dtype});
          });
        }
}

TEST_F(LayerTest, RopeAgrees) {
  Random random(2);
  for (const bool interleaved : {false, true})
    for (const int64_t rotary : {2, 16, 24, 80})
      for (const int64_t tokens : {1, 130})
        for (const int64_t offset : {7, 0}) {  // rows at any element, or aligned
          const int64_t heads = 3, dim = 80, stride = heads * dim + offset;
          for (const DType dtype : {DType::f32, DType::bf16})
            check("rope",
                  {random_array(random, DType::f32, tokens * rotary / 2, 1, offset),
                   random_array(random, DType::f32, tokens * rotary / 2, 1, offset),
                   random_array(random, dtype, tokens * stride, 1, offset)},
                  2, dtype == DType::f32 ? kTolerance : 8e-3,
                  [&](const Kernels& k, const Context& c, const Pointers& p) {
                    k.rope(c, {p[2], stride, f(p[0]), f(p[1]), tokens, heads, dim, rotary, interleaved, dtype});
                  });
        }
}

TEST_F(LayerTest, CacheAppendAgrees) {
  Random random(3);
  for (const DType dtype : kFloatTypes)
    for (const int64_t dim : {1, 64, 100})
      for (const int64_t tokens : {1, 200}) {
        const int64_t kv_heads = 3, past = 11, capacity = 256, stride = kv_heads * dim + 5;
        check(
            "cache_append",
            {random_array(random, DType::f32, tokens * stride), random_array(random, dtype, kv_heads * capacity * dim)},
            1, 0, [&](const Kernels& k, const Context& c, const Pointers& p) {
              k.cache_append(c, {f(p[0]), stride, p[1], dtype, capacity, tokens, past, kv_heads, dim});
            });
        if (dtype == DType::f16) continue;
        const int64_t width = kv_heads * dim;  // aligned, and of the cache's type
        check("cache_append of one type",
              {random_array(random, dtype, tokens * width, 1, 0),
               random_array(random, dtype, kv_heads * capacity * dim, 1, 0)},
              1, 0, [&](const Kernels& k, const Context& c, const Pointers& p) {
                k.cache_append(
                    c, {p[0], width, p[1], dtype, capacity, tokens, past, kv_heads, dim, nullptr, nullptr, dtype});
              });
      }
}

TEST_F(LayerTest, ActivationsAgree) {
  Random random(4);
  for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                      Activation::quick_gelu, Activation::tanh_})
    for (const int64_t rows : {1, 40})
      for (const int64_t cols : {1, 7, 1536}) {
        const int64_t stride = 2 * cols + 1;
        Array x = random_array(random, DType::f32, rows * stride, 4);
        constexpr float kSpecials[] = {0.0f, -0.0f, 100.0f, -100.0f, 1e30f, -1e30f, 1e-30f, -88.0f, 88.5f, NAN};
        for (int64_t i = 0; i < std::min<int64_t>(10, cols); ++i) x.set(i, kSpecials[i]);
        for (const bool gated : {false, true})
          check("activate " + std::to_string(int(activation)), {x, Array(DType::f32, rows * cols)}, 1, kTolerance,
                [&](const Kernels& k, const Context& c, const Pointers& p) {
                  k.activate(c, {f(p[0]), gated ? f(p[0]) + cols : nullptr, stride, rows, cols, activation, f(p[1])});
                });
      }
  const int64_t rows = 50, cols = 300;
  check("activate in place", {random_array(random, DType::f32, rows * 2 * cols)}, 0, kTolerance,
        [&](const Kernels& k, const Context& c, const Pointers& p) {
          k.activate(c, {f(p[0]), f(p[0]) + cols, 2 * cols, rows, cols, Activation::silu, f(p[0])});
        });
}

TEST_F(LayerTest, SplitHeadsAndSoftcapAgree) {
  Random random(7);
  struct Heads {
    int64_t groups, q, kv;
  };
  for (const Heads heads : {Heads{1, 4, 4}, Heads{1, 6, 2}, Heads{5, 1, 1}, Heads{3, 4, 1}})
    for (const int64_t dim : {7, 64})
      for (const int64_t tokens : {1, 90}) {
        const int64_t q = tokens * heads.groups * heads.q * dim, kv = tokens * heads.groups * heads.kv * dim;
        check("split_heads",
              {random_array(random, DType::f32, q + 2 * kv), Array(DType::f32, q), Array(DType::f32, kv),
               Array(DType::f32, kv)},
              1, 0, [&](const Kernels& k, const Context& c, const Pointers& p) {
                k.split_heads(c, {f(p[0]), tokens, heads.groups, heads.q, heads.kv, dim, f(p[1]), f(p[2]), f(p[3])});
              });
      }
  for (const int64_t count : {1, 50000})
    check("softcap", {random_array(random, DType::f32, count, 40)}, 0, 2e-5,
          [&](const Kernels& k, const Context& c, const Pointers& p) {
            k.softcap(c, {f(p[0]), count, 30.0f});
          });
}

TEST_F(LayerTest, ExpertsAgree) {
  Random random(9);
  for (const int64_t experts : {1, 8, 61})
    for (const int64_t top_k : {int64_t{1}, std::min<int64_t>(2, experts), experts})
      for (const bool normalize : {false, true}) {
        const int64_t tokens = 130;
        Array logits = random_array(random, DType::f32, tokens * experts, 3);
        for (int64_t e = 0; e < experts; ++e) logits.set(e, 0.5f);  // a token whose experts are all equal
        check("route_experts", {logits, Array(DType::i32, tokens * top_k), Array(DType::f32, tokens * top_k)}, 1,
              kTolerance, [&](const Kernels& k, const Context& c, const Pointers& p) {
                k.route_experts(c, {f(p[0]), tokens, experts, top_k, normalize, n(p[1]), f(p[2])});
              });
      }
  for (const int64_t cols : {1, 7, 1000}) {
    const int64_t count = 60;
    Array rows(DType::i32, count);
    for (int64_t i = 0; i < count; ++i) rows.set(i, static_cast<float>(i * 7 % 61));
    check("scatter_add_rows",
          {random_array(random, DType::f32, count * cols), rows, random_array(random, DType::f32, count),
           random_array(random, DType::f32, 61 * cols)},
          3, 0, [&](const Kernels& k, const Context& c, const Pointers& p) {
            k.scatter_add_rows(c, {f(p[0]), n(p[1]), f(p[2]), count, cols, f(p[3])});
          });
  }
}

/// The host sorts tokens by the experts that the kernel names: there have to be such.
TEST_F(LayerTest, LogitsThatAreNoNumbersLeadToExpertsThatAreThere) {
  constexpr int64_t kTokens = 3, kExperts = 8, kTopK = 2;
  for (const bool normalize : {false, true}) {
    Array logits(DType::f32, kTokens * kExperts), ids(DType::i32, kTokens * kTopK),
        weights(DType::f32, kTokens * kTopK);
    for (int64_t e = 0; e < kExperts; ++e) {
      logits.set(e, NAN);
      logits.set(kExperts + e, e == 3 ? NAN : 1.0f);
      logits.set(2 * kExperts + e, e == 5 ? INFINITY : -INFINITY);
    }
    for (Array* array : {&logits, &ids, &weights}) array->upload(stream());
    cuda().route_experts(context, {f(logits.device(stream())), kTokens, kExperts, kTopK, normalize,
                                   n(ids.device(stream())), f(weights.device(stream()))});
    finish("route_experts");
    ids.download(stream(), "ids");
    weights.download(stream(), "weights");
    const std::vector<int32_t> expected{0, 1, 3, 0, 5, 0};
    EXPECT_EQ(std::vector<int32_t>(ids.host<int32_t>(), ids.host<int32_t>() + kTokens * kTopK), expected);
    for (int64_t i = 0; i < kTokens * kTopK; ++i) EXPECT_TRUE(std::isnan(weights.host<float>()[i])) << i;
  }
}

TEST_F(LayerTest, RotateAppendAgrees) {
  Random random(11);
  for (const DType dtype : kFloatTypes)
    for (const bool interleaved : {false, true})
      for (const int64_t rotary : {0, 24, 80}) {
        const int64_t heads = 6, kv_heads = 2, dim = 80, capacity = 64, tokens = 1 + 9 + 30 + 40;
        const int64_t q_stride = heads * dim + 3, kv_stride = kv_heads * dim + 1, cache = kv_heads * capacity * dim;
        std::vector<Array> arrays{random_array(random, DType::f32, tokens * rotary / 2 + 1),
                                  random_array(random, DType::f32, tokens * rotary / 2 + 1),
                                  random_array(random, DType::f32, tokens * kv_stride),
                                  random_array(random, DType::f32, tokens * kv_stride),
                                  random_array(random, DType::f32, tokens * q_stride)};
        for (int i = 0; i < 2 * 43; ++i) arrays.push_back(random_array(random, dtype, cache));
        check("rotate_append", arrays, 4, dtype == DType::f32 ? kTolerance : 8e-3,
              [&](const Kernels& k, const Context& c, const Pointers& p) {
                std::vector<AttentionSequence> sequences;
                for (size_t i = 0; i < 43; ++i)  // more than a launch takes
                  sequences.push_back({.q = nullptr,
                                       .k = p[5 + 2 * i],
                                       .v = p[6 + 2 * i],
                                       .capacity = capacity,
                                       .tokens = i == 3   ? 9
                                                 : i == 7 ? 30
                                                          : 1,
                                       .past = static_cast<int64_t>(i % 30),
                                       .out = nullptr});
                k.rotate_append(c, {f(p[4]), f(p[2]), f(p[3]), q_stride, kv_stride, kv_stride, f(p[0]), f(p[1]), rotary,
                                    interleaved, heads, kv_heads, dim, sequences.data(), 43, dtype});
              });
      }
}

TEST_F(LayerTest, ArgmaxAgrees) {
  Random random(12);
  for (const int64_t cols : {1, 3, 255, 32000, 128256}) {
    const int64_t rows = 5;
    Array x = random_array(random, DType::f32, rows * cols);
    for (int64_t c = 0; c < cols; ++c) {
      x.set(cols + c, 2.0f);  // all equal
      x.set(2 * cols + c, NAN);
      x.set(3 * cols + c, -INFINITY);
    }
    x.set(4 * cols + cols / 2, NAN);
    x.set(4 * cols + cols - 1, 1e30f);
    check("argmax", {x, Array(DType::i32, rows)}, 1, 0, [&](const Kernels& k, const Context& c, const Pointers& p) {
      k.argmax(c, {f(p[0]), rows, cols, n(p[1])});
    });
  }
}

TEST_F(LayerTest, CenterAgrees) {
  Random random(13);
  for (const int64_t count : {0, 1, 1000, 300001})
    check("center", {random_array(random, DType::f32, count, 0.1f), Array(DType::f32, 1)}, 0, 0,
          [&](const Kernels& k, const Context& c, const Pointers& p) {
            k.center(c, {f(p[0]), count, f(p[1])});
          });
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
