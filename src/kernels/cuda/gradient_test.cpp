// The gradients and the loss against the reference, in fp32 and bf16.
#include "kernels/cuda/device_case.h"
#include "quant/format.h"

namespace nibble::kernels::cuda::testing {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::bf16};

/// Of a result in `dtype`.
double tolerance_of(DType dtype, double exact) { return dtype == DType::bf16 ? 1.2e-2 : exact; }

std::string label(const char* entry, DType dtype, int64_t a, int64_t b, int64_t c = 0) {
  return std::string(entry) + " " + std::string(name_of(dtype)) + " (" + std::to_string(a) + ", " + std::to_string(b) +
         ", " + std::to_string(c) + ")";
}

Array copy_of(const Array& from, DType dtype, int64_t offset) {
  Array to(dtype, from.count(), offset);
  for (int64_t i = 0; i < from.count(); ++i) to.set(i, from.get(i));
  return to;
}

class GradientTest : public GpuTest {
 protected:
  /// An array's sides: the device's in the type under test, the reference's in fp32.
  struct Sides {
    Array device, host;
    Sides(const Array& values, int64_t offset = 0) : device(copy_of(values, values.dtype(), offset)) {
      host = copy_of(values, DType::f32, 0);
    }
    Sides(DType dtype, int64_t count) : device(dtype, count, 0), host(DType::f32, count, 0) {}
  };
  float* send(Sides& sides) {
    sides.device.upload(stream());
    return sides.device.device<float>(stream());
  }
  static float* f(Sides& sides) { return sides.host.host<float>(); }
  void compare(Sides& sides, double tolerance, const std::string& what) {
    finish(what);
    sides.device.download(stream(), what);
    expect_close(sides.host, sides.device, tolerance, what);
  }

  /// For sums of bf16 products, whose elements may cancel: the error of the whole against the size of the whole.
  void compare_whole(Sides& sides, double tolerance, const std::string& what) {
    finish(what);
    sides.device.download(stream(), what);
    double error = 0, size = 0;
    for (int64_t i = 0; i < sides.host.count(); ++i) {
      const double expected = static_cast<double>(sides.host.get(i)), found = static_cast<double>(sides.device.get(i));
      error += (found - expected) * (found - expected);
      size += expected * expected;
    }
    const double least = 1e-4 * static_cast<double>(sides.host.count());  // elements of 0.01
    EXPECT_LT(std::sqrt(error), tolerance * std::sqrt(size + least)) << what;
  }

  struct Weight {
    Array dense, packed, absmax, q, row_absmax;
    int64_t rows, cols;
  };
  Weight make_weight(Random& random, int64_t rows, int64_t cols) {
    Weight w{random_array(random, DType::bf16, rows * cols, 0.05f, 0),
             Array(DType::u8, (rows * cols + 1) / 2, 0),
             Array(DType::f32, (rows * cols + 63) / 64, 0),
             Array(DType::i8, rows * cols, 0),
             Array(DType::f32, rows, 0),
             rows,
             cols};
    const quant::Format& nf4 = *quant::find_format("nf4");
    reference().quantize_4bit(cpu, {w.dense.host(), DType::bf16, rows * cols, 64, nf4.code_book_4bit,
                                    w.packed.host<uint8_t>(), w.absmax.host<float>()});
    reference().quantize_int8_rows(
        cpu, {w.dense.host(), DType::bf16, rows, cols, 0, w.q.host<int8_t>(), w.row_absmax.host<float>(), nullptr});
    for (Array* array : {&w.dense, &w.packed, &w.absmax, &w.q, &w.row_absmax}) array->upload(stream());
    return w;
  }
  template <typename Side>
  WeightView view(WeightView::Kind kind, Weight& w, Absmax& absmax, const Side& side) {
    const quant::Format& nf4 = *quant::find_format("nf4");
    absmax = {.values = static_cast<const float*>(side(w.absmax))};
    if (kind == WeightView::Kind::dense) return {.kind = kind, .data = side(w.dense), .dtype = DType::bf16};
    if (kind == WeightView::Kind::int8)
      return {.kind = kind, .data = side(w.q), .row_absmax = static_cast<const float*>(side(w.row_absmax))};
    return {.kind = kind,
            .data = side(w.packed),
            .absmax = &absmax,
            .block = 64,
            .code_book = nf4.code_book_4bit->values.data()};
  }
};

TEST_F(GradientTest, InputGradientAgrees) {
  Random random(1);
  struct Shape {
    int64_t m, rows, cols;
  };
  for (const DType dtype : kTypes)
    for (const Shape& s : {Shape{1, 33, 64}, {7, 300, 100}, {50, 8, 577}, {130, 256, 128}, {64, 1536, 1024}}) {
      Weight w = make_weight(random, s.rows, s.cols);
      for (const auto kind : {WeightView::Kind::dense, WeightView::Kind::four_bit, WeightView::Kind::int8})
        for (const bool accumulate : {false, true}) {
          const int64_t stride = s.rows + 8;
          Sides dy(random_array(random, dtype, s.m * stride)), dx(random_array(random, dtype, s.m * s.cols));
          Absmax a, b;
          reference().input_gradient(cpu, {f(dy), stride, s.m, s.rows, s.cols,
                                           view(kind, w, a, [](Array& x) { return x.host(); }), f(dx), accumulate});
          cuda().input_gradient(
              context, {send(dy), stride, s.m, s.rows, s.cols,
                        view(kind, w, b, [&](Array& x) { return x.device(stream()); }), send(dx), accumulate, dtype});
          const std::string what = label("input_gradient", dtype, s.m, s.rows, s.cols) + std::to_string(int(kind));
          dtype == DType::bf16 ? compare_whole(dx, 1e-2, what) : compare(dx, 5e-5, what);
        }
    }
}

/// A weight of more than is decoded at a time.
TEST_F(GradientTest, InputGradientOfSeveralPanelsAgrees) {
  Random random(12);
  const int64_t m = 2, rows = 16640, cols = 4096;
  Weight w{{},
           Array(DType::u8, rows * cols / 2, 0),
           random_array(random, DType::f32, rows * cols / 64, 0.02f, 0),
           Array(DType::i8, rows * cols, 0),
           random_array(random, DType::f32, rows, 0.02f, 0),
           rows,
           cols};
  for (Array* codes : {&w.packed, &w.q})
    for (int64_t i = 0; i < codes->count() / 8; ++i) codes->host<uint64_t>()[i] = random.next();
  for (Array* array : {&w.packed, &w.absmax, &w.q, &w.row_absmax}) array->upload(stream());
  for (const auto kind : {WeightView::Kind::four_bit, WeightView::Kind::int8}) {
    Sides dy(random_array(random, DType::bf16, m * rows)), dx(random_array(random, DType::bf16, m * cols));
    Absmax a, b;
    reference().input_gradient(
        cpu, {f(dy), rows, m, rows, cols, view(kind, w, a, [](Array& x) { return x.host(); }), f(dx), true});
    cuda().input_gradient(
        context, {send(dy), rows, m, rows, cols, view(kind, w, b, [&](Array& x) { return x.device(stream()); }),
                  send(dx), true, DType::bf16});
    compare_whole(dx, 1e-2, "input_gradient of panels " + std::to_string(int(kind)));
  }
}

TEST_F(GradientTest, InputGradientRoundsAsItIsTold) {
  Random random(11);
  const int64_t m = 130, rows = 256, cols = 128, stride = rows + 8;
  Weight w = make_weight(random, rows, cols);
  for (const auto kind : {WeightView::Kind::dense, WeightView::Kind::four_bit})
    for (const bool accumulate : {false, true}) {
      Sides dy(random_array(random, DType::f32, m * stride)), dx(random_array(random, DType::f32, m * cols));
      Absmax a, b;
      reference().input_gradient(
          cpu, {f(dy), stride, m, rows, cols, view(kind, w, a, [](Array& x) { return x.host(); }), f(dx), accumulate,
                DType::f32, DType::bf16});
      cuda().input_gradient(
          context, {send(dy), stride, m, rows, cols, view(kind, w, b, [&](Array& x) { return x.device(stream()); }),
                    send(dx), accumulate, DType::f32, DType::bf16});
      compare(dx, 1e-4, "input_gradient rounded " + std::to_string(int(kind)));
    }
}

TEST_F(GradientTest, WeightGradientAgrees) {
  Random random(2);
  for (const DType dtype : kTypes)
    for (const int64_t m : {1, 7, 300})
      for (const int64_t rows : {1, 16, 136})
        for (const int64_t cols : {1, 16, 300, 512})
          for (const bool accumulate : {false, true}) {
            Sides dy(random_array(random, dtype, m * rows)), x(random_array(random, dtype, m * cols));
            Sides dw(random_array(random, DType::f32, rows * cols));
            reference().weight_gradient(cpu, {f(dy), f(x), m, rows, cols, f(dw), accumulate});
            cuda().weight_gradient(context, {send(dy), send(x), m, rows, cols, send(dw), accumulate, dtype});
            compare(dw, 1e-4, label("weight_gradient", dtype, m, rows, cols));
          }
}

TEST_F(GradientTest, NormGradientsAgree) {
  Random random(3);
  for (const DType dtype : kTypes)
    for (const int64_t rows : {1, 37})
      for (const int64_t cols : {3, 64, 100, 4096})
        for (const bool accumulate : {false, true})
          for (const bool has_weight : {false, true}) {
            Sides x(random_array(random, dtype, rows * cols)), dy(random_array(random, dtype, rows * cols));
            Sides w(random_array(random, DType::f32, cols)), sum(random_array(random, dtype, rows * cols));
            Sides dw(random_array(random, DType::f32, cols)), db = dw, layer_dw = dw, layer_sum = sum;
            const float *xs = send(x), *ws = send(w), *dys = send(dy);
            reference().rms_norm_gradient(
                cpu, {f(x), f(w), f(dy), rows, cols, 1e-5f, 1, f(sum), has_weight ? f(dw) : nullptr, accumulate});
            cuda().rms_norm_gradient(context, {xs, ws, dys, rows, cols, 1e-5f, 1, send(sum),
                                               has_weight ? send(dw) : nullptr, accumulate, dtype});
            compare(sum, tolerance_of(dtype, 2e-5), label("rms_norm_gradient", dtype, rows, cols));
            if (has_weight) compare(dw, 2e-5, label("rms_norm_gradient weight", dtype, rows, cols));
            reference().layer_norm_gradient(
                cpu, {f(x), f(w), f(dy), rows, cols, 1e-5f, f(layer_sum), has_weight ? f(layer_dw) : nullptr,
                      has_weight ? f(db) : nullptr, accumulate});
            cuda().layer_norm_gradient(
                context, {xs, ws, dys, rows, cols, 1e-5f, send(layer_sum), has_weight ? send(layer_dw) : nullptr,
                          has_weight ? send(db) : nullptr, accumulate, dtype});
            compare(layer_sum, tolerance_of(dtype, 1e-4), label("layer_norm_gradient", dtype, rows, cols));
            if (!has_weight) continue;
            compare(layer_dw, 1e-4, label("layer_norm_gradient weight", dtype, rows, cols));
            compare(db, 2e-5, label("layer_norm_gradient bias", dtype, rows, cols));
          }
}

TEST_F(GradientTest, ActivateGradientAgrees) {
  Random random(4);
  for (const DType dtype : kTypes)
    for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                        Activation::quick_gelu, Activation::tanh_})
      for (const int64_t cols : {1, 7, 64, 1536})
        for (const bool is_gated : {false, true}) {
          const int64_t rows = 30, stride = 2 * cols;
          Sides x(random_array(random, dtype, rows * stride, 3)), dout(random_array(random, dtype, rows * cols));
          float* host = f(x);
          reference().activate_gradient(cpu, {host, is_gated ? host + cols : nullptr, stride, f(dout), rows, cols,
                                              activation, host, is_gated ? host + cols : nullptr});
          float* gate = send(x);  // in place
          auto* up = reinterpret_cast<float*>(reinterpret_cast<char*>(gate) + cols * size_of(dtype));
          cuda().activate_gradient(context, {gate, is_gated ? up : nullptr, stride, send(dout), rows, cols, activation,
                                             gate, is_gated ? up : nullptr, dtype});
          compare(x, tolerance_of(dtype, 1e-5), label("activate_gradient", dtype, rows, cols, int(activation)));
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

TEST_F(GradientTest, CrossEntropyAgrees) {
  Random random(6);
  for (const DType dtype : kTypes)
    for (const int64_t vocab : {1, 5, 64, 5000}) {
      const int64_t rows = 20;
      Sides logits(random_array(random, dtype, rows * vocab, 5)), loss(DType::f32, rows);
      Array targets(DType::i32, rows, 0);
      for (int64_t r = 0; r < rows; ++r)
        targets.set(r, r % 4 == 3 ? -100.0f : static_cast<float>(random.next() % static_cast<uint64_t>(vocab)));
      targets.upload(stream());
      reference().cross_entropy(cpu, {f(logits), targets.host<int32_t>(), rows, vocab, 0.25f, f(loss)});
      cuda().cross_entropy(context,
                           {send(logits), targets.device<int32_t>(stream()), rows, vocab, 0.25f, send(loss), dtype});
      compare(logits, tolerance_of(dtype, 1e-5), label("cross_entropy", dtype, rows, vocab));
      compare(loss, 2e-5, label("cross_entropy loss", dtype, rows, vocab));
    }
}

TEST_F(GradientTest, DropoutAndAddScaledAgree) {
  Random random(7);
  for (const DType dtype : kTypes)
    for (const int64_t count : {1, 17, 64, 50000}) {
      Sides x(random_array(random, dtype, count)), out(dtype, count), y(random_array(random, dtype, count));
      reference().dropout(cpu, {f(x), count, 0.3f, 42, 1000, f(out)});
      cuda().dropout(context, {send(x), count, 0.3f, 42, 1000, send(out), dtype});
      compare(out, dtype == DType::bf16 ? 4e-3 : 0, label("dropout", dtype, count, 0));
      reference().add_scaled(cpu, {f(x), count, 0.7f, f(y)});
      cuda().add_scaled(context, {send(x), count, 0.7f, send(y), dtype});
      compare(y, tolerance_of(dtype, 1e-6), label("add_scaled", dtype, count, 0));
    }
}

TEST_F(GradientTest, ColumnsAgree) {
  Random random(9);
  struct Shape {
    int64_t rows, cols;
  };
  for (const DType dtype : kTypes)
    for (const auto& [rows, cols] : {Shape{1, 1}, {3, 33}, {65, 7}, {700, 136}, {20000, 40}}) {
      const int64_t stride = cols + 3;
      Sides x(random_array(random, dtype, rows * cols)), y(random_array(random, dtype, rows * cols));
      Sides scale(random_array(random, DType::f32, cols)), bias(random_array(random, DType::f32, cols));
      for (const bool is_whole : {false, true})
        for (const DType out_dtype : kTypes) {
          Sides out(random_array(random, out_dtype, rows * stride));
          reference().scale_columns(
              cpu, {f(x), f(scale), is_whole ? f(bias) : nullptr, rows, cols, f(out), stride, is_whole});
          cuda().scale_columns(context, {send(x), send(scale), is_whole ? send(bias) : nullptr, rows, cols, send(out),
                                         stride, is_whole, dtype, out_dtype});
          compare(out, tolerance_of(out_dtype, 1e-5), label("scale_columns", dtype, rows, cols));
        }
      for (const bool has_y : {false, true}) {
        Sides sums(random_array(random, DType::f32, cols));
        reference().sum_columns(cpu, {f(x), has_y ? f(y) : nullptr, rows, cols, f(sums)});
        cuda().sum_columns(context, {send(x), has_y ? send(y) : nullptr, rows, cols, send(sums), dtype});
        compare_whole(sums, 1e-4, label("sum_columns", dtype, rows, cols));
      }
    }
}

/// Each head with a norm of its own.
TEST_F(GradientTest, LayerNormGradientOfSetsAgrees) {
  Random random(10);
  for (const DType dtype : kTypes)
    for (const int64_t sets : {2, 5}) {
      const int64_t rows = 150 * sets, cols = 40;
      Sides x(random_array(random, dtype, rows * cols)), dy(random_array(random, dtype, rows * cols));
      Sides w(random_array(random, DType::f32, sets * cols)), dx(random_array(random, dtype, rows * cols));
      Sides dw(random_array(random, DType::f32, sets * cols)), db(random_array(random, DType::f32, sets * cols));
      reference().layer_norm_gradient(
          cpu, {f(x), f(w), f(dy), rows, cols, 1e-5f, f(dx), f(dw), f(db), true, DType::f32, sets});
      cuda().layer_norm_gradient(
          context, {send(x), send(w), send(dy), rows, cols, 1e-5f, send(dx), send(dw), send(db), true, dtype, sets});
      compare(dx, tolerance_of(dtype, 1e-4), label("layer_norm_gradient", dtype, rows, cols, sets));
      compare(dw, 1e-4, label("layer_norm_gradient weight", dtype, rows, cols, sets));
      compare(db, 1e-4, label("layer_norm_gradient bias", dtype, rows, cols, sets));
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
