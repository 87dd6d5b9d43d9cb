// attention against the reference: decode and prefill, grouped heads, windows, softcap, ALiBi, mixed sequences.
#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

struct Shape {
  int64_t tokens, past;
};

struct AttentionCase {
  std::vector<Shape> sequences;
  int64_t heads, kv_heads, head_dim;
  DType kv_dtype = DType::f32;
  float softcap = 0;
  int64_t window = 0;
  bool alibi = false;
  bool is_causal = true;
  int64_t more_keys = 0;  // not causal: keys past the last query
  bool relative = false;
  int64_t offset = 0;  // elements past an aligned address
  double tolerance = 1e-5;
  DType q_dtype = DType::f32;
};

std::string describe(const AttentionCase& a) {
  std::string text = "attention heads " + std::to_string(a.heads) + "/" + std::to_string(a.kv_heads) + " dim " +
                     std::to_string(a.head_dim) + " " + std::string(name_of(a.kv_dtype)) + " window " +
                     std::to_string(a.window);
  for (const auto& s : a.sequences) text += " [" + std::to_string(s.tokens) + " after " + std::to_string(s.past) + "]";
  return text;
}

/// The arrays of one case and its arguments on either side.
struct Problem {
  std::vector<Array> q, k, v, out, k_scales, v_scales;
  std::vector<int64_t> capacity;
  Array slopes, relative, pasts;
  int64_t span = 1;
  const AttentionCase& a;

  Problem(const AttentionCase& attention, uint64_t seed) : a(attention) {
    Random random(seed);
    slopes = Array(DType::f32, a.heads);
    for (int64_t h = 0; h < a.heads; ++h)
      slopes.set(h, std::exp2f(-8.0f * static_cast<float>(h + 1) / static_cast<float>(a.heads)));
    pasts = Array(DType::i32, static_cast<int64_t>(a.sequences.size()));
    for (const Shape& s : a.sequences) {
      const int64_t keys = s.past + s.tokens + a.more_keys;
      span = std::max(span, keys);
      capacity.push_back(keys + static_cast<int64_t>(random.next() % 5));
      q.push_back(random_array(random, a.q_dtype, s.tokens * q_stride(), 1, a.q_dtype == DType::bf16 ? a.offset : 1));
      for (auto* cache : {&k, &v}) {
        const float size = a.kv_dtype == DType::i8 ? 40 : 1;
        cache->push_back(random_array(random, a.kv_dtype, a.kv_heads * capacity.back() * a.head_dim, size, a.offset));
        Array scales(DType::f32, a.kv_heads * capacity.back());
        for (int64_t i = 0; i < scales.count(); ++i)
          scales.set(i, i % capacity.back() < keys ? static_cast<float>(1 + i % 7) / 280 : NAN);
        (cache == &k ? k_scales : v_scales).push_back(scales);
        if (a.kv_dtype == DType::i8) continue;
        for (int64_t head = 0; head < a.kv_heads; ++head)  // keys past the last must not be touched
          for (int64_t i = keys * a.head_dim; i < capacity.back() * a.head_dim; ++i)
            cache->back().set(head * capacity.back() * a.head_dim + i, NAN);
      }
      out.emplace_back(a.q_dtype, s.tokens * a.heads * a.head_dim, a.q_dtype == DType::bf16 ? a.offset : 1);
      pasts.set(static_cast<int64_t>(out.size()) - 1, static_cast<float>(s.past));
    }
    relative = random_array(random, DType::f32, a.heads * (2 * span - 1));
  }

  int64_t q_stride() const { return a.heads * a.head_dim + (a.q_dtype == DType::bf16 ? 8 : 3); }

  /// `side` maps an array to its pointer. `slack`: the call is told that sequences may be that much longer.
  template <typename Side>
  void run(const Kernels& kernels, const Context& context, const Side& side, const int32_t* pasts_at = nullptr,
           int64_t slack = 0) {
    std::vector<AttentionSequence> sequences;
    for (size_t i = 0; i < out.size(); ++i) {
      const Shape& s = a.sequences[i];
      sequences.push_back({side(q[i]), side(k[i]), side(v[i]), capacity[i], s.tokens, s.past + slack, side(out[i]),
                           s.past + s.tokens + a.more_keys, pasts_at ? pasts_at + i : nullptr,
                           static_cast<float*>(side(k_scales[i])), static_cast<float*>(side(v_scales[i]))});
    }
    AttentionArgs args{};
    args.sequences = sequences.data();
    args.sequence_count = static_cast<int64_t>(sequences.size());
    args.heads = a.heads;
    args.kv_heads = a.kv_heads;
    args.head_dim = a.head_dim;
    args.q_stride = q_stride();
    args.kv_dtype = a.kv_dtype;
    args.scale = 1 / std::sqrt(static_cast<float>(a.head_dim));
    args.softcap = a.softcap;
    args.window = a.window;
    args.alibi_slopes = a.alibi ? static_cast<const float*>(side(slopes)) : nullptr;
    args.is_causal = a.is_causal;
    args.relative_bias = a.relative ? static_cast<const float*>(side(relative)) : nullptr;
    args.relative_span = span;
    args.q_dtype = a.q_dtype;
    kernels.attention(context, args);
  }
};

class AttentionTest : public GpuTest {
 protected:
  void check(const AttentionCase& a, uint64_t seed) {
    Problem problem(a, seed);
    Problem expected = problem;
    expected.run(reference(), cpu, [](Array& array) { return array.host(); });
    for (auto* arrays : {&problem.q, &problem.k, &problem.v, &problem.k_scales, &problem.v_scales})
      for (Array& array : *arrays) array.upload(stream());
    for (Array* array : {&problem.slopes, &problem.relative, &problem.pasts}) array->upload(stream());
    const auto on_device = [&](Array& array) { return array.device(stream()); };
    problem.run(cuda(), context, on_device);
    compare(a, problem, expected, "");
    for (Array& array : problem.out)
      array = Array(a.q_dtype, array.count(), a.q_dtype == DType::bf16 ? a.offset : 1);  // poison again
    problem.run(cuda(), context, on_device, problem.pasts.device<int32_t>(stream()), a.is_causal ? 300 : 0);
    compare(a, problem, expected, " with lengths in device memory");
  }

 private:
  void compare(const AttentionCase& a, Problem& problem, const Problem& expected, const std::string& how) {
    finish(describe(a));
    for (size_t i = 0; i < problem.out.size(); ++i) {
      problem.out[i].download(stream(), describe(a));
      expect_close(expected.out[i], problem.out[i], a.tolerance, describe(a) + how);
    }
  }
};

TEST_F(AttentionTest, DecodeAgrees) {
  for (const DType dtype : kFloatTypes)
    for (const int64_t past : {0, 1, 14, 15, 16, 63, 64, 65, 95, 300, 513, 2047, 2500})
      for (const int64_t dim : {64, 80, 100, 128, 256}) check({{{1, past}}, 9, 3, dim, dtype}, 1);
}

TEST_F(AttentionTest, UnalignedCachesAgree) {
  for (const int64_t tokens : {1, 40})
    check(
        {.sequences = {{tokens, 90}}, .heads = 4, .kv_heads = 2, .head_dim = 64, .kv_dtype = DType::bf16, .offset = 1},
        2);
}

TEST_F(AttentionTest, PrefillAgrees) {
  for (const int64_t tokens : {2, 7, 65, 130})
    for (const int64_t past : {0, 3, 100}) {
      for (const DType dtype : {DType::f32, DType::f16}) check({{{tokens, past}}, 6, 2, 64, dtype}, 2);
      for (const int64_t dim : {20, 40, 64, 80, 96, 128, 160, 256})
        check({.sequences = {{tokens, past}},
               .heads = 6,
               .kv_heads = 2,
               .head_dim = dim,
               .kv_dtype = DType::bf16,
               .tolerance = 2e-2},
              2);
    }
}

TEST_F(AttentionTest, NarrowQueriesAgree) {
  for (const int64_t dim : {64, 80, 128})
    for (const Shape shape : {Shape{1, 0}, Shape{1, 700}, Shape{2, 0}, Shape{65, 3}, Shape{128, 0}, Shape{130, 100},
                              Shape{129, 64}, Shape{300, 0}, Shape{257, 129}, Shape{64, 1000}})
      for (const int64_t window : {0, 100})
        check({.sequences = {shape},
               .heads = 6,
               .kv_heads = 2,
               .head_dim = dim,
               .kv_dtype = DType::bf16,
               .window = window,
               .tolerance = 2e-2,
               .q_dtype = DType::bf16},
              21);
  AttentionCase many{
      .sequences = {}, .heads = 4, .kv_heads = 4, .head_dim = 128, .kv_dtype = DType::bf16, .tolerance = 2e-2};
  many.q_dtype = DType::bf16;
  for (int64_t i = 0; i < 40; ++i) many.sequences.push_back({1 + i * 13 % 150, i * 7 % 140});
  check(many, 22);
}

// Prompts run over a bf16 copy of the codes: values are rounded once more.
TEST_F(AttentionTest, CachesOfCodesAgree) {
  for (const DType q_dtype : {DType::f32, DType::bf16})
    for (const int64_t dim : {20, 64, 80, 128, 256})
      for (const Shape shape : {Shape{1, 0}, Shape{1, 70}, Shape{1, 700}, Shape{130, 0}, Shape{70, 300}})
        check({.sequences = {shape, shape},
               .heads = 6,
               .kv_heads = 2,
               .head_dim = dim,
               .kv_dtype = DType::i8,
               .tolerance = 4e-2,
               .q_dtype = q_dtype},
              23);
}

TEST_F(AttentionTest, LargePrefillAgrees) {
  check({.sequences = {{1000, 24}},
         .heads = 4,
         .kv_heads = 2,
         .head_dim = 128,
         .kv_dtype = DType::bf16,
         .tolerance = 2e-2,
         .q_dtype = DType::bf16},
        3);
  check(
      {.sequences = {{512, 0}}, .heads = 4, .kv_heads = 4, .head_dim = 128, .kv_dtype = DType::bf16, .tolerance = 2e-2},
      3);
}

TEST_F(AttentionTest, HeadCountsAgree) {
  for (const int64_t group : {1, 2, 5, 8, 17})
    for (const Shape shape : {Shape{1, 70}, Shape{20, 70}})
      check({.sequences = {shape},
             .heads = 2 * group,
             .kv_heads = 2,
             .head_dim = 64,
             .kv_dtype = DType::bf16,
             .tolerance = 2e-2},
            4);
}

TEST_F(AttentionTest, WindowAgrees) {
  for (const int64_t window : {1, 5, 64, 100, 1000})
    for (const Shape shape : {Shape{1, 0}, Shape{1, 70}, Shape{1, 700}, Shape{130, 0}, Shape{70, 300}})
      for (const DType dtype : {DType::f32, DType::bf16})
        check({.sequences = {shape},
               .heads = 4,
               .kv_heads = 2,
               .head_dim = 64,
               .kv_dtype = dtype,
               .window = window,
               .tolerance = dtype == DType::f32 || shape.tokens == 1 ? 1e-5 : 2e-2},
              5);
}

TEST_F(AttentionTest, SoftcapAndAlibiAgree) {
  for (const Shape shape : {Shape{1, 0}, Shape{1, 600}, Shape{90, 0}, Shape{70, 300}}) {
    check({{shape}, 4, 2, 64, DType::f32, 0.7f}, 6);
    check({{shape}, 4, 2, 64, DType::f32, 0, 0, true}, 7);
    check({.sequences = {shape},
           .heads = 4,
           .kv_heads = 4,
           .head_dim = 48,
           .kv_dtype = DType::bf16,
           .softcap = 5.0f,
           .window = 33,
           .alibi = true,
           .tolerance = 2e-2},
          8);
  }
}

TEST_F(AttentionTest, EncodersAndRelativeBiasAgree) {
  for (const Shape shape : {Shape{1, 0}, Shape{1, 5}, Shape{130, 0}})
    for (const int64_t more : {0, 1, 300}) check({{shape}, 4, 2, 64, DType::f32, 0, 0, false, false, more}, 11);
  for (const Shape shape : {Shape{1, 0}, Shape{1, 600}, Shape{70, 300}}) {
    check({{shape}, 4, 4, 64, DType::f32, 0, 0, false, true, 0, true}, 12);
    check({{shape}, 4, 2, 20, DType::bf16, 0, 0, false, false, 33, true}, 13);
  }
}

TEST_F(AttentionTest, SequencesOfManyLengthsAgree) {
  AttentionCase a{.sequences = {{1, 40}, {17, 0}, {1, 900}, {90, 10}, {1, 0}, {2, 2}},
                  .heads = 6,
                  .kv_heads = 2,
                  .head_dim = 64,
                  .kv_dtype = DType::bf16,
                  .tolerance = 2e-2};
  check(a, 9);
  a.sequences.clear();
  for (int64_t i = 0; i < 70; ++i) a.sequences.push_back({1, 5 * i});
  a.tolerance = 1e-5;
  check(a, 10);
}

TEST_F(AttentionTest, SequenceDoesNotDependOnTheOthers) {
  const AttentionCase together{
      .sequences = {{1, 3}, {1, 2400}, {1, 700}}, .heads = 4, .kv_heads = 4, .head_dim = 128, .kv_dtype = DType::bf16};
  Problem all(together, 20);
  for (auto* arrays : {&all.q, &all.k, &all.v})
    for (Array& array : *arrays) array.upload(stream());
  const auto on_device = [&](Array& array) { return array.device(stream()); };
  all.run(cuda(), context, on_device);
  AttentionCase alone = together;
  alone.sequences = {{1, 700}};
  Problem one(alone, 20);
  one.q = {all.q[2]};
  one.k = {all.k[2]};
  one.v = {all.v[2]};
  one.capacity = {all.capacity[2]};
  one.run(cuda(), context, on_device);
  finish("alone");
  all.out[2].download(stream(), "together");
  one.out[0].download(stream(), "alone");
  expect_close(all.out[2], one.out[0], 0, "a sequence alone and among others");
}

/// One token for each sequence: the fused entry against its two parts, bit by bit, in what comes out and in the caches.
TEST_F(AttentionTest, NewTokensInOneLaunchAreThoseOfTwo) {
  struct Heads {
    int64_t heads, kv_heads, dim, window;
    bool rotates;
  };
  Random random(11);
  for (const Heads& h :
       {Heads{4, 4, 128, 0, true}, Heads{8, 2, 64, 0, true}, Heads{16, 2, 128, 40, true}, Heads{9, 1, 64, 0, false},
        Heads{2, 2, 96, 0, true}, Heads{3, 3, 80, 0, true}, Heads{4, 1, 256, 0, true}})
    for (const auto& [dtype, kv_dtype] : {std::pair{DType::f32, DType::bf16},
                                          {DType::bf16, DType::bf16},
                                          {DType::f32, DType::i8},
                                          {DType::bf16, DType::i8}}) {
      const std::string label = "heads " + std::to_string(h.heads) + "/" + std::to_string(h.kv_heads) + " dim " +
                                std::to_string(h.dim) + " " + std::string(name_of(dtype)) + " " +
                                std::string(name_of(kv_dtype));
      const std::vector<int64_t> pasts{0, 63, 64, 191, 192, 513, 700};
      const auto count = static_cast<int64_t>(pasts.size());
      const int64_t width = (h.heads + 2 * h.kv_heads) * h.dim, capacity = 704;
      Array qkv = random_array(random, dtype, count * width, 1, 0);
      Array cos = random_array(random, DType::f32, count * h.dim / 2, 1, 0);
      Array sin = random_array(random, DType::f32, count * h.dim / 2, 1, 0);
      const bool has_scales = kv_dtype == DType::i8;
      const Array keys = random_array(random, kv_dtype, count * h.kv_heads * capacity * h.dim, has_scales ? 40 : 1, 0);
      Array scales(DType::f32, count * h.kv_heads * capacity);
      for (int64_t i = 0; i < scales.count(); ++i) scales.set(i, static_cast<float>(1 + i % 7) / 280);
      std::vector<Array> results;
      for (const bool is_fused : {false, true}) {
        Array x = qkv, k = keys, v = keys, k_scales = scales, v_scales = scales, out(dtype, count * h.heads * h.dim, 0);
        for (Array* array : {&x, &k, &v, &cos, &sin, &k_scales, &v_scales}) array->upload(stream());
        const auto element = [&](Array& array, int64_t i) {
          return static_cast<void*>(static_cast<char*>(array.device(stream())) + i * size_of(array.dtype()));
        };
        std::vector<AttentionSequence> sequences;
        for (int64_t s = 0; s < count; ++s)
          sequences.push_back({.q = element(x, s * width),
                               .k = element(k, s * h.kv_heads * capacity * h.dim),
                               .v = element(v, s * h.kv_heads * capacity * h.dim),
                               .capacity = capacity,
                               .tokens = 1,
                               .past = pasts[static_cast<size_t>(s)],
                               .out = element(out, s * h.heads * h.dim),
                               .k_scales = static_cast<float*>(element(k_scales, s * h.kv_heads * capacity)),
                               .v_scales = static_cast<float*>(element(v_scales, s * h.kv_heads * capacity))});
        const RotateAppendArgs rotation{.q = element(x, 0),
                                        .k = element(x, h.heads * h.dim),
                                        .v = element(x, (h.heads + h.kv_heads) * h.dim),
                                        .q_stride = width,
                                        .k_stride = width,
                                        .v_stride = width,
                                        .cos = cos.device<float>(stream()),
                                        .sin = sin.device<float>(stream()),
                                        .rotary_dim = h.rotates ? h.dim : 0,
                                        .interleaved = false,
                                        .heads = h.heads,
                                        .kv_heads = h.kv_heads,
                                        .head_dim = h.dim,
                                        .sequences = sequences.data(),
                                        .sequence_count = count,
                                        .kv_dtype = kv_dtype,
                                        .x_dtype = dtype};
        const AttentionArgs args{.sequences = sequences.data(),
                                 .sequence_count = count,
                                 .heads = h.heads,
                                 .kv_heads = h.kv_heads,
                                 .head_dim = h.dim,
                                 .q_stride = width,
                                 .kv_dtype = kv_dtype,
                                 .scale = 0.1f,
                                 .window = h.window,
                                 .q_dtype = dtype};
        if (is_fused) {
          ASSERT_TRUE(cuda().rotate_attention(context, rotation, args)) << label;
        } else {
          cuda().rotate_append(context, rotation);
          cuda().attention(context, args);
        }
        finish(label);
        for (Array* array : {&out, &k, &v, &k_scales, &v_scales}) {
          array->download(stream(), label);
          results.push_back(*array);
        }
      }
      for (size_t i = 0; i < 5; ++i) expect_close(results[i], results[i + 5], 0, label);
    }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
