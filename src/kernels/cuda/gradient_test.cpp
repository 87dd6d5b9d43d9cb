// The gradients and the loss against the reference, in fp32 and bf16.
#include "kernels/cuda/gradient_case.h"
#include "kernels/cuda/table.h"
#include "quant/format.h"

namespace nibble::kernels::cuda::testing {
namespace {

class InputGradientTest : public GradientTest {
 protected:
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

TEST_F(InputGradientTest, Agrees) {
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
TEST_F(InputGradientTest, OfSeveralPanelsAgrees) {
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

TEST_F(InputGradientTest, RoundsAsItIsTold) {
  if (library_version().empty()) GTEST_SKIP() << "without cuBLASLt products of fp32 are not rounded";
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

}  // namespace
}  // namespace nibble::kernels::cuda::testing
