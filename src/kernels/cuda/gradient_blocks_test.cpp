// Gradients of attention and of adapters' updates against the reference.
#include "kernels/cuda/gradient_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

struct AttentionShape {
  std::vector<int64_t> tokens;
  int64_t heads, kv_heads, head_dim, window;
  bool has_alibi;
  float softcap = 0;
  DType alibi_dtype = DType::f32;
  float alibi_scale = 1;
};

class AttentionGradientTest : public GradientTest {
 protected:
  void check(Random& random, DType dtype, const AttentionShape& shape);
};

void AttentionGradientTest::check(Random& random, DType dtype, const AttentionShape& shape) {
  int64_t total = 0;
  for (const int64_t t : shape.tokens) total += t;
  const int64_t width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
  Sides q(random_array(random, dtype, total * width)), k(random_array(random, dtype, total * kv_width));
  Sides v(random_array(random, dtype, total * kv_width)), dout(random_array(random, dtype, total * width));
  Sides dq(dtype, total * width), dk(dtype, total * kv_width), dv(dtype, total * kv_width);
  Array slopes(DType::f32, shape.heads);
  for (int64_t h = 0; h < shape.heads; ++h) slopes.set(h, std::exp2f(-1.0f - static_cast<float>(h)));
  slopes.upload(stream());
  // `out` by the forward entry in fp32, rounded.
  Array out(dtype, total * width, 0), lse2(DType::f32, shape.heads * total);
  int64_t first = 0;
  for (const int64_t tokens : shape.tokens) {
    std::vector<float> keys(static_cast<size_t>(tokens * kv_width)), values(keys.size());
    std::vector<float> result(static_cast<size_t>(tokens * width));
    for (auto& [from, to] : {std::pair{&k, &keys}, std::pair{&v, &values}})
      reference().cache_append(cpu, {f(*from) + first * kv_width, kv_width, to->data(), DType::f32, tokens, tokens, 0,
                                     shape.kv_heads, shape.head_dim});
    AttentionSequence sequence{f(q) + first * width, keys.data(), values.data(), tokens, tokens, 0, result.data()};
    sequence.lse2 = lse2.host<float>() + first;
    AttentionArgs args{};
    args.sequences = &sequence;
    args.sequence_count = 1;
    args.heads = shape.heads;
    args.kv_heads = shape.kv_heads;
    args.head_dim = shape.head_dim;
    args.q_stride = width;
    args.kv_dtype = DType::f32;
    args.scale = 0.1f;
    args.window = shape.window;
    args.alibi_slopes = shape.has_alibi ? slopes.host<float>() : nullptr;
    args.softcap = shape.softcap;
    args.alibi_dtype = shape.alibi_dtype;
    args.alibi_scale = shape.alibi_scale;
    args.lse_stride = total;
    reference().attention(cpu, args);
    for (int64_t i = 0; i < tokens * width; ++i) out.set(first * width + i, result[static_cast<size_t>(i)]);
    first += tokens;
  }
  Sides attended(out);
  lse2.upload(stream());
  const auto run = [&](const Kernels& kernels, const Context& c, const auto& side, const float* alibi, DType type,
                       const float* given) {
    std::vector<AttentionGradientSequence> sequences;
    int64_t begin = 0;
    const auto at = [&](Sides& sides, int64_t elements) {
      return reinterpret_cast<float*>(reinterpret_cast<char*>(side(sides)) + elements * size_of(type));
    };
    for (const int64_t tokens : shape.tokens) {
      sequences.push_back({at(q, begin * width), at(k, begin * kv_width), at(v, begin * kv_width),
                           at(attended, begin * width), at(dout, begin * width), tokens, at(dq, begin * width),
                           at(dk, begin * kv_width), at(dv, begin * kv_width), 0, given ? given + begin : nullptr});
      begin += tokens;
    }
    kernels.attention_gradient(
        c, {sequences.data(), static_cast<int64_t>(sequences.size()), shape.heads, shape.kv_heads, shape.head_dim, 0.1f,
            shape.window, alibi, type, shape.softcap, shape.alibi_dtype, shape.alibi_scale, true, nullptr, 0, total});
  };
  run(
      reference(), cpu, [](Sides& x) { return f(x); }, shape.has_alibi ? slopes.host<float>() : nullptr, DType::f32,
      nullptr);
  for (Sides* sides : {&q, &k, &v, &attended, &dout}) send(*sides);
  for (const float* given : {static_cast<const float*>(nullptr), lse2.device<const float>(stream())}) {
    run(
        cuda(), context, [&](Sides& x) { return x.device.device<float>(stream()); },
        shape.has_alibi ? slopes.device<float>(stream()) : nullptr, dtype, given);
    const std::string what = label("attention_gradient", dtype, shape.tokens[0], shape.heads, shape.head_dim);
    for (Sides* sides : {&dq, &dk, &dv})
      dtype == DType::bf16 ? compare_whole(*sides, 2e-2, what) : compare(*sides, 1e-4, what);
  }
}

TEST_F(AttentionGradientTest, Agrees) {
  Random random(5);
  for (const DType dtype : kTypes)
    for (const AttentionShape& shape :
         {AttentionShape{{100}, 3, 3, 64, 0, true}, AttentionShape{{130, 1, 49}, 6, 2, 32, 0, false},
          AttentionShape{{150}, 4, 2, 16, 33, false}, AttentionShape{{90}, 4, 1, 16, 5, true},
          AttentionShape{{257, 64}, 4, 2, 128, 0, false}, AttentionShape{{200}, 2, 2, 128, 70, true},
          AttentionShape{{70}, 2, 1, 160, 0, false}, AttentionShape{{130, 20}, 4, 2, 64, 0, false, 0.7f},
          AttentionShape{{200}, 2, 1, 128, 50, true, 0.5f}, AttentionShape{{70}, 2, 1, 256, 0, false, 0.7f},
          AttentionShape{{300}, 4, 4, 64, 0, true, 0, DType::bf16, 0.125f},
          AttentionShape{{300}, 4, 4, 20, 0, true, 0, DType::bf16}, AttentionShape{{260, 129}, 4, 1, 128, 0, false},
          AttentionShape{{5, 128, 1, 64, 193, 77, 130, 20}, 2, 1, 64, 0, false},
          AttentionShape{{300}, 1, 1, 128, 70, false}, AttentionShape{{320, 90}, 2, 1, 64, 200, false}})
      check(random, dtype, shape);
}

/// Small enough for tools that watch every access.
TEST_F(AttentionGradientTest, AgreesForSmallShapes) {
  Random random(14);
  for (const DType dtype : kTypes)
    for (const AttentionShape& shape :
         {AttentionShape{{1}, 2, 1, 8, 0, false}, AttentionShape{{17, 3}, 4, 2, 20, 0, false},
          AttentionShape{{40, 7}, 2, 1, 64, 0, false}, AttentionShape{{33}, 2, 1, 128, 9, false}})
      check(random, dtype, shape);
}

/// Two sequences at once, whose queries see all keys, or those before them; what attention gave is any array.
TEST_F(GradientTest, RelativeBiasGradientAgrees) {
  constexpr int64_t kHeads = 3, kDim = 20;
  Random random(15);
  for (const DType dtype : kTypes)
    for (const auto& shape : {std::pair{1, 1}, std::pair{9, 30}, std::pair{70, 5}, std::pair{130, 130}})
      for (const bool is_causal : {false, true}) {
        const int64_t tokens = shape.first, keys = shape.second;
        if (is_causal && tokens != keys) continue;
        const int64_t row = kHeads * kDim, span = std::max(tokens, keys) + 2;
        const auto make = [&](int64_t rows) { return Sides(random_array(random, dtype, rows * row)); };
        Sides q = make(2 * tokens), k = make(2 * keys), v = make(2 * keys), out = make(2 * tokens),
              dout = make(2 * tokens);
        Sides dq(dtype, 2 * tokens * row), dk(dtype, 2 * keys * row), dv(dtype, 2 * keys * row);
        Sides bias(random_array(random, DType::f32, kHeads * (2 * span - 1))), dbias = bias;  // added to what is there
        const auto run = [&](const Kernels& kernels, const Context& c, const auto& side, DType type) {
          const auto at = [&](Sides& sides, int64_t rows) {
            return reinterpret_cast<float*>(reinterpret_cast<char*>(side(sides)) + rows * row * size_of(type));
          };
          std::vector<AttentionGradientSequence> both;
          for (const int64_t i : {0, 1})
            both.push_back({at(q, i * tokens), at(k, i * keys), at(v, i * keys), at(out, i * tokens),
                            at(dout, i * tokens), tokens, at(dq, i * tokens), at(dk, i * keys), at(dv, i * keys),
                            is_causal ? 0 : keys});
          AttentionGradientArgs args{both.data(), 2, kHeads, kHeads, kDim, 0.3f, 0, nullptr, type};
          args.is_causal = is_causal;
          args.relative_bias = side(bias);
          args.relative_span = span;
          args.drelative_bias = side(dbias);
          kernels.attention_gradient(c, args);
        };
        run(
            reference(), {}, [](Sides& x) { return f(x); }, DType::f32);
        for (Sides* sides : {&q, &k, &v, &out, &dout, &bias, &dbias}) send(*sides);
        run(
            cuda(), context, [&](Sides& x) { return x.device.device<float>(stream()); }, dtype);
        const std::string what = label("attention_gradient, relative", dtype, tokens, keys, is_causal);
        for (Sides* sides : {&dq, &dk, &dv})
          dtype == DType::bf16 ? compare_whole(*sides, 2e-2, what) : compare(*sides, 1e-4, what);
        compare(dbias, 1e-4, what + " bias");
      }
}

struct LowRankShape {
  int64_t m, cols, rows, rank;
};

class LowRankTest : public GradientTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped() && context.capability < 80) GTEST_SKIP() << "needs bf16 tensor cores";
  }
  void check(Random& random, const LowRankShape& s, float p);
};

/// The low-rank entries against products of the reference.
void LowRankTest::check(Random& random, const LowRankShape& s, float p) {
  const float scale = 0.5f;
  const DType bf = DType::bf16;
  Sides x(random_array(random, bf, s.m * s.cols)), a(random_array(random, DType::f32, s.rank * s.cols, 0.1f));
  Sides b(random_array(random, DType::f32, s.rows * s.rank, 0.1f)), y(random_array(random, bf, s.m * s.rows));
  Sides dy(random_array(random, bf, s.m * s.rows)), dx(random_array(random, bf, s.m * s.cols));
  Sides da(random_array(random, DType::f32, s.rank * s.cols)), db(random_array(random, DType::f32, s.rows * s.rank));
  const std::string what = label("low_rank", bf, s.m, s.cols, s.rank);
  const auto multiply = [&](const float* left, int64_t m, int64_t cols, const float* w, int64_t rows, float* out,
                            bool accumulate) {
    const MatmulDenseJob job{w, DType::f32, rows, {out, rows, nullptr, accumulate}};
    reference().matmul_dense(cpu, {left, m, cols, DType::f32}, &job, 1);
  };
  std::vector<float> dropped(static_cast<size_t>(s.m * s.cols)), low(static_cast<size_t>(s.m * s.rank));
  reference().dropout(cpu, {f(x), s.m * s.cols, p, 9, 0, dropped.data()});
  multiply(dropped.data(), s.m, s.cols, f(a), s.rank, low.data(), false);
  for (float& value : low) value *= scale;
  multiply(low.data(), s.m, s.rank, f(b), s.rows, f(y), true);
  const auto stride = (s.m + 7) / 8 * 8;
  Array transposed(bf, padded_rank(s.rank) * stride, 0);
  const auto* xs = send(x);
  const auto *as = send(a), *bs = send(b);
  cuda().low_rank_update(context,
                         {xs, s.m, s.cols, s.rows, s.rank, as, bs, scale, p, 9, transposed.device(stream()), send(y)});
  compare_whole(y, 1e-2, what + " y");
  std::vector<float> dlow(low.size()), part(dropped.size());
  const WeightView wb{WeightView::Kind::dense, f(b), DType::f32}, wa{WeightView::Kind::dense, f(a), DType::f32};
  reference().weight_gradient(cpu, {f(dy), low.data(), s.m, s.rows, s.rank, f(db), true});
  reference().input_gradient(cpu, {f(dy), s.rows, s.m, s.rows, s.rank, wb, dlow.data(), false});
  for (float& value : dlow) value *= scale;
  reference().weight_gradient(cpu, {dlow.data(), dropped.data(), s.m, s.rank, s.cols, f(da), true});
  reference().input_gradient(cpu, {dlow.data(), s.rank, s.m, s.rank, s.cols, wa, part.data(), false});
  reference().dropout(cpu, {part.data(), s.m * s.cols, p, 9, 0, part.data()});
  reference().add_scaled(cpu, {part.data(), s.m * s.cols, 1, f(dx)});
  cuda().low_rank_gradient(context, {xs, s.m, s.cols, s.rows, s.rank, as, bs, scale, p, 9, transposed.device(stream()),
                                     send(dy), send(da), true, send(db), true, send(dx)});
  compare_whole(da, 1e-2, what + " a");
  compare_whole(db, 1e-2, what + " b");
  compare_whole(dx, 1e-2, what + " x");
}

TEST_F(LowRankTest, UpdatesAndGradientsAgree) {
  Random random(8);
  for (const LowRankShape& s :
       {LowRankShape{130, 520, 264, 16}, {300, 1032, 96, 24}, {65, 256, 320, 64}, {2048, 512, 640, 4}})
    for (const float p : {0.0f, 0.25f}) check(random, s, p);
}

/// Small enough for tools that watch every access.
TEST_F(LowRankTest, SmallUpdatesAndGradientsAgree) {
  Random random(13);
  for (const LowRankShape& s : {LowRankShape{1, 64, 64, 16}, {37, 72, 136, 8}})
    for (const float p : {0.0f, 0.25f}) check(random, s, p);
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
