// The gradients that training needs, against the reference; and the reference against differences of the forward entry.
#include <functional>

#include "kernels/cpu/op_case.h"
#include "quant/format.h"

namespace nibble::kernels::cpu::testing {
namespace {

constexpr double kTolerance = 2e-5;

std::string label(const char* entry, int64_t a, int64_t b, int64_t c = 0) {
  return std::string(entry) + " (" + std::to_string(a) + ", " + std::to_string(b) + ", " + std::to_string(c) + ")";
}

TEST(Gradient, InputGradientAgrees) {
  Random random(1);
  const quant::Format& nf4 = *quant::find_format("nf4");
  for (const int64_t m : {1, 7, 50})
    for (const int64_t rows : {1, 33, 300})
      for (const int64_t cols : {1, 64, 100, 577, 1184}) {
        const Buffer w = random_buffer(random, DType::bf16, rows * cols);
        const Buffer dy = random_buffer(random, DType::f32, m * (rows + 3)),
                     sum = random_buffer(random, DType::f32, m * cols);
        std::vector<uint8_t> packed(static_cast<size_t>((rows * cols + 1) / 2));
        std::vector<float> values(static_cast<size_t>((rows * cols + 63) / 64));
        reference::table().quantize_4bit(
            {}, {w.data(), DType::bf16, rows * cols, 64, nf4.code_book_4bit, packed.data(), values.data()});
        std::vector<int8_t> q(static_cast<size_t>(rows * cols));
        std::vector<float> scales(static_cast<size_t>(rows));
        reference::table().quantize_int8_rows({},
                                              {w.data(), DType::bf16, rows, cols, 0, q.data(), scales.data(), nullptr});
        const Absmax absmax{.values = values.data()};
        const WeightView views[] = {{.kind = WeightView::Kind::dense, .data = w.data(), .dtype = DType::bf16},
                                    {.kind = WeightView::Kind::four_bit,
                                     .data = packed.data(),
                                     .absmax = &absmax,
                                     .block = 64,
                                     .code_book = nf4.code_book_4bit->values.data()},
                                    {.kind = WeightView::Kind::int8, .data = q.data(), .row_absmax = scales.data()}};
        for (const WeightView& view : views)
          for (const bool accumulate : {false, true})
            for (const DType compute : {DType::f32, DType::bf16})
              check({label("input_gradient", m, rows, cols) + std::to_string(int(view.kind)) + name_of(compute).data(),
                     [&](const Kernels& k, const Context& c) {
                       Outputs out{sum};
                       k.input_gradient(c, {dy.as<float>(), rows + 3, m, rows, cols, view, out[0].as<float>(),
                                            accumulate, DType::f32, compute});
                       return out;
                     },
                     5e-5});
      }
}

TEST(Gradient, WeightGradientAgrees) {
  Random random(2);
  for (const int64_t m : {1, 7, 300})
    for (const int64_t rows : {1, 16, 100})
      for (const int64_t cols : {1, 8, 16, 300}) {
        const Buffer dy = random_buffer(random, DType::f32, m * rows), x = random_buffer(random, DType::f32, m * cols);
        const Buffer sum = random_buffer(random, DType::f32, rows * cols);
        for (const bool accumulate : {false, true})
          check({label("weight_gradient", m, rows, cols),
                 [&](const Kernels& k, const Context& c) {
                   Outputs out{sum};
                   k.weight_gradient(c, {dy.as<float>(), x.as<float>(), m, rows, cols, out[0].as<float>(), accumulate});
                   return out;
                 },
                 kTolerance});
      }
}

TEST(Gradient, NormGradientsAgree) {
  Random random(3);
  for (const int64_t rows : {1, 37})
    for (const int64_t cols : {3, 64, 100, 576}) {
      const Buffer x = random_buffer(random, DType::f32, rows * cols),
                   dy = random_buffer(random, DType::f32, rows * cols);
      const Buffer weight = random_buffer(random, DType::f32, cols),
                   sum = random_buffer(random, DType::f32, rows * cols);
      const Buffer more = random_buffer(random, DType::f32, cols);
      for (const bool accumulate : {false, true})
        for (const bool has_weight : {false, true}) {
          check({label("rms_norm_gradient", rows, cols),
                 [&](const Kernels& k, const Context& c) {
                   Outputs out{sum, more};
                   k.rms_norm_gradient(c, {x.as<float>(), weight.as<float>(), dy.as<float>(), rows, cols, 1e-5f, 1.0f,
                                           out[0].as<float>(), has_weight ? out[1].as<float>() : nullptr, accumulate});
                   return out;
                 },
                 kTolerance});
          check({label("layer_norm_gradient", rows, cols),
                 [&](const Kernels& k, const Context& c) {
                   Outputs out{sum, more, more};
                   k.layer_norm_gradient(c, {x.as<float>(), weight.as<float>(), dy.as<float>(), rows, cols, 1e-5f,
                                             out[0].as<float>(), has_weight ? out[1].as<float>() : nullptr,
                                             has_weight ? out[2].as<float>() : nullptr, accumulate});
                   return out;
                 },
                 1e-4});
        }
    }
}

constexpr Activation kActivations[] = {Activation::silu, Activation::gelu,       Activation::gelu_tanh,
                                       Activation::relu, Activation::quick_gelu, Activation::tanh_};

TEST(Gradient, ActivateGradientAgrees) {
  Random random(4);
  for (const Activation activation : kActivations)
    for (const int64_t cols : {1, 7, 64, 300})
      for (const bool is_gated : {false, true}) {
        const int64_t rows = 30, stride = 2 * cols + 1;
        const Buffer x = random_buffer(random, DType::f32, rows * stride, 3),
                     dout = random_buffer(random, DType::f32, rows * cols);
        check({label("activate_gradient", rows, cols, int(activation)),
               [&](const Kernels& k, const Context& c) {
                 Outputs out{x};  // in place
                 float* gate = out[0].as<float>();
                 k.activate_gradient(c, {gate, is_gated ? gate + cols : nullptr, stride, dout.as<float>(), rows, cols,
                                         activation, gate, is_gated ? gate + cols : nullptr});
                 return out;
               },
               kTolerance});
      }
}

struct AttentionShape {
  std::vector<int64_t> tokens;
  int64_t heads, kv_heads, head_dim, window;
  bool has_alibi;
  float softcap = 0;
  DType alibi_dtype = DType::f32;
  float alibi_scale = 1;
};

/// q, k, v, dout of some sequences, one after the other.
struct AttentionInputs {
  AttentionShape shape;
  Buffer q, k, v, dout;
  std::vector<float> slopes;

  AttentionInputs(AttentionShape s, Random& random) : shape(std::move(s)) {
    int64_t total = 0;
    for (const int64_t t : shape.tokens) total += t;
    q = random_buffer(random, DType::f32, total * shape.heads * shape.head_dim);
    dout = random_buffer(random, DType::f32, total * shape.heads * shape.head_dim);
    k = random_buffer(random, DType::f32, total * shape.kv_heads * shape.head_dim);
    v = random_buffer(random, DType::f32, total * shape.kv_heads * shape.head_dim);
    for (int64_t h = 0; h < shape.heads; ++h) slopes.push_back(std::exp2f(-1.0f - static_cast<float>(h)));
  }

  /// The forward entry on the same inputs.
  std::vector<float> forward(const float* queries, const float* keys, const float* values) const {
    const Kernels& kernels = reference::table();
    std::vector<float> out(static_cast<size_t>(q.count()));
    int64_t first = 0;
    for (const int64_t tokens : shape.tokens) {
      const int64_t kv = shape.kv_heads * shape.head_dim, width = shape.heads * shape.head_dim;
      std::vector<float> cache_k(static_cast<size_t>(tokens * kv)), cache_v(cache_k.size());
      kernels.cache_append(
          {}, {keys + first * kv, kv, cache_k.data(), DType::f32, tokens, tokens, 0, shape.kv_heads, shape.head_dim});
      kernels.cache_append(
          {}, {values + first * kv, kv, cache_v.data(), DType::f32, tokens, tokens, 0, shape.kv_heads, shape.head_dim});
      const AttentionSequence sequence{queries + first * width,   cache_k.data(), cache_v.data(), tokens, tokens, 0,
                                       out.data() + first * width};
      AttentionArgs args{};
      args.sequences = &sequence;
      args.sequence_count = 1;
      args.heads = shape.heads;
      args.kv_heads = shape.kv_heads;
      args.head_dim = shape.head_dim;
      args.q_stride = width;
      args.kv_dtype = DType::f32;
      args.scale = 0.2f;
      args.window = shape.window;
      args.alibi_slopes = shape.has_alibi ? slopes.data() : nullptr;
      args.softcap = shape.softcap;
      args.alibi_dtype = shape.alibi_dtype;
      args.alibi_scale = shape.alibi_scale;
      kernels.attention({}, args);
      first += tokens;
    }
    return out;
  }

  Outputs gradient(const Kernels& kernels, const Context& context) const {
    const std::vector<float> out = forward(q.as<float>(), k.as<float>(), v.as<float>());
    Outputs result{Buffer(DType::f32, q.count()), Buffer(DType::f32, k.count()), Buffer(DType::f32, v.count())};
    std::vector<AttentionGradientSequence> sequences;
    int64_t first = 0;
    for (const int64_t tokens : shape.tokens) {
      const int64_t at = first * shape.heads * shape.head_dim, kv = first * shape.kv_heads * shape.head_dim;
      sequences.push_back({q.as<float>() + at, k.as<float>() + kv, v.as<float>() + kv, out.data() + at,
                           dout.as<float>() + at, tokens, result[0].as<float>() + at, result[1].as<float>() + kv,
                           result[2].as<float>() + kv});
      first += tokens;
    }
    kernels.attention_gradient(
        context, {sequences.data(), static_cast<int64_t>(sequences.size()), shape.heads, shape.kv_heads, shape.head_dim,
                  0.2f, shape.window, shape.has_alibi ? slopes.data() : nullptr, DType::f32, shape.softcap,
                  shape.alibi_dtype, shape.alibi_scale});
    return result;
  }
};

TEST(Gradient, AttentionGradientAgrees) {
  Random random(5);
  for (const AttentionShape& shape :
       {AttentionShape{{1}, 2, 1, 8, 0, false}, AttentionShape{{17, 3}, 4, 2, 20, 0, false},
        AttentionShape{{100}, 3, 3, 64, 0, true}, AttentionShape{{130, 1, 49}, 6, 2, 32, 0, false},
        AttentionShape{{150}, 4, 2, 16, 33, false}, AttentionShape{{90}, 4, 1, 16, 5, true},
        AttentionShape{{70}, 4, 2, 16, 0, false, 3}, AttentionShape{{300}, 2, 2, 16, 0, true, 0, DType::bf16, 0.25f}}) {
    const AttentionInputs inputs(shape, random);
    check({label("attention_gradient", shape.tokens[0], shape.heads, shape.head_dim),
           [&](const Kernels& k, const Context& c) { return inputs.gradient(k, c); }, 5e-5});
  }
}

TEST(Gradient, CrossEntropyAgrees) {
  Random random(6);
  for (const int64_t vocab : {1, 5, 64, 5000}) {
    const int64_t rows = 20;
    const Buffer logits = random_buffer(random, DType::f32, rows * vocab, 5);
    std::vector<int32_t> targets;
    for (int64_t r = 0; r < rows; ++r)
      targets.push_back(r % 4 == 3 ? -100 : static_cast<int32_t>(random.next() % vocab));
    check({label("cross_entropy", rows, vocab),
           [&](const Kernels& k, const Context& c) {
             Outputs out{logits, Buffer(DType::f32, rows)};
             k.cross_entropy(c, {out[0].as<float>(), targets.data(), rows, vocab, 0.25f, out[1].as<float>()});
             return out;
           },
           kTolerance});
  }
}

TEST(Gradient, DropoutAndAddScaledAgree) {
  Random random(7);
  for (const int64_t count : {1, 17, 50000}) {
    const Buffer x = random_buffer(random, DType::f32, count), y = random_buffer(random, DType::f32, count);
    for (const int64_t first : {1000, 1001, 1003})
      for (const float p : {0.0f, 0.05f, 0.3f, 0.6f, 0.999999f})
        check({label("dropout", count, first), [&](const Kernels& k, const Context& c) {
                 Outputs out{Buffer(DType::f32, count)};
                 k.dropout(c, {x.as<float>(), count, p, 42, first, out[0].as<float>()});
                 return out;
               }});
    check({label("add_scaled", count, 0),
           [&](const Kernels& k, const Context& c) {
             Outputs out{y};
             k.add_scaled(c, {x.as<float>(), count, 0.7f, out[0].as<float>()});
             return out;
           },
           kTolerance});
  }
}

TEST(Gradient, LowRankAgrees) {
  Random random(12);
  struct Shape {
    int64_t m, cols, rows, rank;
  };
  for (const Shape& s : {Shape{1, 5, 3, 1},
                         {7, 64, 96, 8},
                         {50, 100, 33, 4},
                         {131, 300, 200, 16},
                         {97, 72, 130, 24},
                         {65, 256, 320, 64}})
    for (const float p : {0.0f, 0.25f}) {
      const DType f32 = DType::f32;
      const Buffer x = random_buffer(random, f32, s.m * s.cols), a = random_buffer(random, f32, s.rank * s.cols, 0.1f),
                   b = random_buffer(random, f32, s.rows * s.rank, 0.1f), y = random_buffer(random, f32, s.m * s.rows),
                   dy = random_buffer(random, f32, s.m * s.rows), dx = random_buffer(random, f32, s.m * s.cols);
      for (const bool accumulate : {false, true})
        check({label("low_rank", s.m, s.cols, s.rank) + " dropout " + std::to_string(p),
               [&](const Kernels& k, const Context& c) {
                 Outputs out{y, a, b, dx};  // da and db start as a and b
                 Buffer low(f32, padded_rank(s.rank) * ((s.m + 7) / 8 * 8));
                 k.low_rank_update(c, {x.data(), s.m, s.cols, s.rows, s.rank, a.as<float>(), b.as<float>(), 0.5f, p, 9,
                                       low.data(), out[0].data(), f32});
                 k.low_rank_gradient(c, {x.data(), s.m, s.cols, s.rows, s.rank, a.as<float>(), b.as<float>(), 0.5f, p,
                                         9, low.data(), dy.data(), out[1].as<float>(), accumulate, out[2].as<float>(),
                                         accumulate, out[3].data(), f32});
                 return out;
               },
               1e-4});
    }
}

TEST(Gradient, ColumnsAgree) {
  Random random(8);
  for (const int64_t rows : {1, 40})
    for (const int64_t cols : {1, 16, 300}) {
      const Buffer x = random_buffer(random, DType::f32, rows * cols),
                   y = random_buffer(random, DType::f32, rows * cols), scale = random_buffer(random, DType::f32, cols),
                   sum = random_buffer(random, DType::f32, rows * (cols + 2));
      for (const bool is_plain : {false, true})
        check({label("columns", rows, cols),
               [&](const Kernels& k, const Context& c) {
                 Outputs out{sum, scale};
                 k.scale_columns(c, {x.as<float>(), scale.as<float>(), is_plain ? nullptr : y.as<float>(), rows, cols,
                                     out[0].as<float>(), cols + 2, is_plain});
                 k.sum_columns(c, {x.as<float>(), is_plain ? nullptr : y.as<float>(), rows, cols, out[1].as<float>()});
                 return out;
               },
               kTolerance});
    }
}

TEST(Gradient, DropoutKeepsItsShare) {
  const int64_t count = 100000;
  std::vector<float> x(count, 1.0f), out(count);
  reference::table().dropout({}, {x.data(), count, 0.3f, 7, 0, out.data()});
  double sum = 0;
  int64_t kept = 0;
  for (const float value : out) {
    sum += static_cast<double>(value);
    kept += value != 0;
  }
  EXPECT_NEAR(static_cast<double>(kept) / count, 0.7, 0.01);
  EXPECT_NEAR(sum / count, 1.0, 0.015);
}

// ---- the reference against central differences
// -----------------------------------------------------------------------

/// Checks `gradient` of f(x) = <dout, forward(x)> in a random direction.
void check_difference(const char* what, Random& random, std::vector<float> x, const std::vector<float>& gradient,
                      const std::function<double(const std::vector<float>&)>& f) {
  std::vector<float> direction(x.size());
  double expected = 0, length = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    direction[i] = static_cast<float>(random.normal());
    expected += static_cast<double>(direction[i]) * static_cast<double>(gradient[i]);
    length += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
  }
  constexpr float kStep = 0.004f;
  std::vector<float> ahead = x, behind = x;
  for (size_t i = 0; i < x.size(); ++i) {
    ahead[i] += kStep * direction[i];
    behind[i] -= kStep * direction[i];
  }
  EXPECT_NEAR((f(ahead) - f(behind)) / (2.0 * static_cast<double>(kStep)), expected, 2e-3 * std::sqrt(length) + 1e-4)
      << what;
}

double product(const std::vector<float>& a, const float* b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

std::vector<float> values_of(const Buffer& buffer) { return {buffer.as<float>(), buffer.as<float>() + buffer.count()}; }

TEST(Reference, AttentionGradientIsTheSlope) {
  Random random(8);
  const AttentionInputs inputs({{13}, 4, 2, 6, 7, true, 1.5f}, random);
  const Outputs gradient = inputs.gradient(reference::table(), {});
  const float* dout = inputs.dout.as<float>();
  check_difference("q", random, values_of(inputs.q), values_of(gradient[0]), [&](const std::vector<float>& q) {
    return product(inputs.forward(q.data(), inputs.k.as<float>(), inputs.v.as<float>()), dout);
  });
  check_difference("k", random, values_of(inputs.k), values_of(gradient[1]), [&](const std::vector<float>& k) {
    return product(inputs.forward(inputs.q.as<float>(), k.data(), inputs.v.as<float>()), dout);
  });
  check_difference("v", random, values_of(inputs.v), values_of(gradient[2]), [&](const std::vector<float>& v) {
    return product(inputs.forward(inputs.q.as<float>(), inputs.k.as<float>(), v.data()), dout);
  });
}

TEST(Reference, NormGradientsAreTheSlope) {
  Random random(9);
  const int64_t rows = 3, cols = 20;
  const auto x = values_of(random_buffer(random, DType::f32, rows * cols)),
             w = values_of(random_buffer(random, DType::f32, cols));
  const auto dy = values_of(random_buffer(random, DType::f32, rows * cols));
  const Kernels& k = reference::table();
  const auto rms = [&](const std::vector<float>& x_, const std::vector<float>& w_) {
    std::vector<float> out(x_.size());
    k.rms_norm({}, {x_.data(), w_.data(), rows, cols, 1e-5f, 1, out.data()});
    return product(out, dy.data());
  };
  const auto layer = [&](const std::vector<float>& x_, const std::vector<float>& w_) {
    std::vector<float> out(x_.size());
    k.layer_norm({}, {x_.data(), w_.data(), nullptr, rows, cols, 1e-5f, out.data()});
    return product(out, dy.data());
  };
  std::vector<float> dx(x.size()), dw(w.size());
  k.rms_norm_gradient({}, {x.data(), w.data(), dy.data(), rows, cols, 1e-5f, 1, dx.data(), dw.data(), false});
  check_difference("rms x", random, x, dx, [&](const auto& v) { return rms(v, w); });
  check_difference("rms w", random, w, dw, [&](const auto& v) { return rms(x, v); });
  std::fill(dw.begin(), dw.end(), 0.0f);
  k.layer_norm_gradient({}, {x.data(), w.data(), dy.data(), rows, cols, 1e-5f, dx.data(), dw.data(), nullptr, false});
  check_difference("layer x", random, x, dx, [&](const auto& v) { return layer(v, w); });
  check_difference("layer w", random, w, dw, [&](const auto& v) { return layer(x, v); });
}

TEST(Reference, ActivateGradientIsTheSlope) {
  Random random(10);
  const int64_t count = 60;
  const Kernels& k = reference::table();
  for (const Activation activation : kActivations) {
    if (activation == Activation::relu) continue;  // has a corner
    const auto gate = values_of(random_buffer(random, DType::f32, count)),
               up = values_of(random_buffer(random, DType::f32, count));
    const auto dout = values_of(random_buffer(random, DType::f32, count));
    const auto f = [&](const std::vector<float>& g, const std::vector<float>& u) {
      std::vector<float> out(g.size());
      k.activate({}, {g.data(), u.data(), count, 1, count, activation, out.data()});
      return product(out, dout.data());
    };
    std::vector<float> dgate(count), dup(count);
    k.activate_gradient({},
                        {gate.data(), up.data(), count, dout.data(), 1, count, activation, dgate.data(), dup.data()});
    check_difference("gate", random, gate, dgate, [&](const auto& v) { return f(v, up); });
    check_difference("up", random, up, dup, [&](const auto& v) { return f(gate, v); });
  }
}

TEST(Reference, CrossEntropyIsTheSlope) {
  Random random(11);
  const int64_t rows = 4, vocab = 30;
  const auto logits = values_of(random_buffer(random, DType::f32, rows * vocab, 2));
  const int32_t targets[] = {3, 29, -1, 0};
  const auto f = [&](const std::vector<float>& x) {
    std::vector<float> copy = x, loss(rows);
    reference::table().cross_entropy({}, {copy.data(), targets, rows, vocab, 1, loss.data()});
    return static_cast<double>(loss[0]) + static_cast<double>(loss[1]) + static_cast<double>(loss[2]) +
           static_cast<double>(loss[3]);
  };
  std::vector<float> gradient = logits, loss(rows);
  reference::table().cross_entropy({}, {gradient.data(), targets, rows, vocab, 1, loss.data()});
  check_difference("logits", random, logits, gradient, f);
  EXPECT_EQ(loss[2], 0);
}

}  // namespace
}  // namespace nibble::kernels::cpu::testing
