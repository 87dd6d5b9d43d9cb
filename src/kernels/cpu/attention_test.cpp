// attention against the reference: decode and prefill, grouped heads, windows, softcap, ALiBi, mixed sequences.
#include "kernels/cpu/op_case.h"

namespace nibble::kernels::cpu::testing {
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
  DType alibi_dtype = DType::f32;
  float alibi_scale = 1;
};

std::string describe(const AttentionCase& a) {
  std::string text = "attention heads " + std::to_string(a.heads) + "/" + std::to_string(a.kv_heads) + " dim " +
                     std::to_string(a.head_dim) + " " + std::string(name_of(a.kv_dtype)) + " window " +
                     std::to_string(a.window);
  for (const auto& s : a.sequences) text += " [" + std::to_string(s.tokens) + " after " + std::to_string(s.past) + "]";
  return text;
}

void check_attention(const AttentionCase& a, uint64_t seed) {
  Random random(seed);
  const int64_t q_stride = a.heads * a.head_dim + 3;
  std::vector<Buffer> q, k, v;
  std::vector<int64_t> capacity;
  std::vector<float> slopes;
  for (int64_t h = 0; h < a.heads; ++h)
    slopes.push_back(std::exp2f(-8.0f * static_cast<float>(h + 1) / static_cast<float>(a.heads)));
  for (const auto& s : a.sequences) {
    const int64_t keys = s.past + s.tokens + a.more_keys;
    capacity.push_back(keys + static_cast<int64_t>(random.next() % 5));
    q.push_back(random_buffer(random, DType::f32, s.tokens * q_stride));
    k.push_back(random_buffer(random, a.kv_dtype, a.kv_heads * capacity.back() * a.head_dim));
    v.push_back(random_buffer(random, a.kv_dtype, a.kv_heads * capacity.back() * a.head_dim));
    for (int64_t head = 0; head < a.kv_heads; ++head)  // keys past the last must not be touched
      for (int64_t i = keys * a.head_dim; i < capacity.back() * a.head_dim; ++i) {
        k.back().set(head * capacity.back() * a.head_dim + i, NAN);
        v.back().set(head * capacity.back() * a.head_dim + i, NAN);
      }
  }
  int64_t span = 1;
  for (const auto& s : a.sequences) span = std::max(span, s.past + s.tokens + a.more_keys);
  const Buffer relative = random_buffer(random, DType::f32, a.heads * (2 * span - 1));
  check({describe(a),
         [&](const Kernels& kernels, const Context& context) {
           Outputs out;
           std::vector<AttentionSequence> sequences;
           for (const auto& s : a.sequences) out.emplace_back(DType::f32, s.tokens * a.heads * a.head_dim);
           for (size_t i = 0; i < out.size(); ++i)
             sequences.push_back({q[i].as<float>(), k[i].data(), v[i].data(), capacity[i], a.sequences[i].tokens,
                                  a.sequences[i].past, out[i].as<float>(),
                                  a.sequences[i].past + a.sequences[i].tokens + a.more_keys});
           AttentionArgs args{};
           args.sequences = sequences.data();
           args.sequence_count = static_cast<int64_t>(sequences.size());
           args.heads = a.heads;
           args.kv_heads = a.kv_heads;
           args.head_dim = a.head_dim;
           args.q_stride = q_stride;
           args.kv_dtype = a.kv_dtype;
           args.scale = 1 / std::sqrt(static_cast<float>(a.head_dim));
           args.softcap = a.softcap;
           args.window = a.window;
           args.alibi_slopes = a.alibi ? slopes.data() : nullptr;
           args.alibi_dtype = a.alibi_dtype;
           args.alibi_scale = a.alibi_scale;
           args.is_causal = a.is_causal;
           args.relative_bias = a.relative ? relative.as<float>() : nullptr;
           args.relative_span = span;
           kernels.attention(context, args);
           return out;
         },
         1e-5});
}

TEST(Attention, DecodeAgrees) {
  for (const DType dtype : kFloatTypes)
    for (const int64_t past : {0, 1, 15, 16, 17, 255, 256, 300, 1030})
      for (const int64_t dim : {64, 80, 100, 128}) check_attention({{{1, past}}, 9, 3, dim, dtype}, 1);
}

TEST(Attention, PrefillAgrees) {
  for (const DType dtype : kFloatTypes)
    for (const int64_t tokens : {2, 7, 24, 65, 130})
      for (const int64_t past : {0, 3, 100})
        for (const int64_t dim : {20, 64}) check_attention({{{tokens, past}}, 6, 2, dim, dtype}, 2);
}

TEST(Attention, LargePrefillAgrees) { check_attention({{{512, 0}}, 4, 4, 128, DType::bf16}, 3); }

TEST(Attention, HeadCountsAgree) {
  for (const int64_t group : {1, 2, 5, 8, 80})
    for (const Shape shape : {Shape{1, 70}, Shape{20, 70}})
      check_attention({{shape}, 2 * group, 2, 64, DType::bf16}, 4);
}

TEST(Attention, WindowAgrees) {
  for (const int64_t window : {1, 5, 64, 100, 1000})
    for (const Shape shape : {Shape{1, 0}, Shape{1, 70}, Shape{1, 700}, Shape{130, 0}, Shape{70, 300}})
      check_attention({{shape}, 4, 2, 64, DType::f32, 0, window}, 5);
}

TEST(Attention, SoftcapAndAlibiAgree) {
  for (const Shape shape : {Shape{1, 0}, Shape{1, 600}, Shape{90, 0}, Shape{70, 300}}) {
    check_attention({{shape}, 4, 2, 64, DType::f32, 0.7f}, 6);
    check_attention({{shape}, 4, 2, 64, DType::f32, 0, 0, true}, 7);
    check_attention({{shape}, 4, 4, 48, DType::bf16, 5.0f, 33, true}, 8);
    check_attention({{shape}, 6, 2, 48, DType::f32, 0, 0, true, true, 0, false, DType::bf16, 0.14f}, 14);
  }
}

TEST(Attention, EncodersAndCrossAttentionAgree) {
  for (const Shape shape : {Shape{1, 0}, Shape{1, 5}, Shape{40, 0}, Shape{130, 0}, Shape{7, 3}})
    for (const int64_t more : {0, 1, 70, 300})
      check_attention({{shape}, 4, 2, 64, DType::f32, 0, 0, false, false, more}, 11);
}

TEST(Attention, RelativeBiasAgrees) {
  for (const Shape shape : {Shape{1, 0}, Shape{1, 17}, Shape{1, 600}, Shape{90, 0}, Shape{70, 300}}) {
    check_attention({{shape}, 4, 4, 64, DType::f32, 0, 0, false, true, 0, true}, 12);
    check_attention({{shape}, 4, 2, 20, DType::bf16, 0, 0, false, false, 33, true}, 13);
  }
}

TEST(Attention, SequencesOfManyLengthsAgree) {
  check_attention({{{1, 40}, {17, 0}, {1, 900}, {90, 10}, {1, 0}, {2, 2}}, 6, 2, 64, DType::bf16}, 9);
}

TEST(Attention, SequenceDoesNotDependOnTheOthers) {
  // The same sequence alone and between others: `check` compares with the reference, here the bits must be equal.
  Random random(10);
  const int64_t heads = 4, dim = 64, past = 500;
  const Buffer q = random_buffer(random, DType::f32, heads * dim),
               k = random_buffer(random, DType::f32, heads * (past + 1) * dim);
  for (const auto& isa : isas()) {
    if (!isa.is_supported) continue;
    std::vector<float> out(static_cast<size_t>(heads * dim * 5));
    std::vector<AttentionSequence> all;
    for (int64_t i = 0; i < 5; ++i)
      all.push_back(
          {q.as<float>(), k.data(), k.data(), past + 1, 1, i == 3 ? past : 3 * i, out.data() + i * heads * dim});
    AttentionArgs args{};
    args.heads = args.kv_heads = heads;
    args.head_dim = dim;
    args.q_stride = heads * dim;
    args.kv_dtype = DType::f32;
    args.scale = 0.125f;
    args.sequences = all.data();
    args.sequence_count = 5;
    isa.table->attention({}, args);
    const std::vector<float> among(out.begin() + 3 * heads * dim, out.begin() + 4 * heads * dim);
    args.sequences = &all[3];
    args.sequence_count = 1;
    isa.table->attention({}, args);
    EXPECT_EQ(0, std::memcmp(among.data(), out.data() + 3 * heads * dim, among.size() * sizeof(float))) << isa.name;
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu::testing
