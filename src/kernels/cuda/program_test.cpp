// Recorded graphs whose launches became decode programs against the same graphs as they were recorded, bit by bit.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

struct ModelShape {
  int64_t hidden, kv, mid, m;
  DType compute;
  bool nested;
  int64_t block = 64;
  bool has_bias = false;
  int64_t head_dim = 0;  // 0: o reads q
};

/// A 4-bit weight of random bytes; its products keep the size of what they multiply.
struct RandomWeight {
  RandomWeight(Random& random, device::CudaStream& stream, const ModelShape& shape, int64_t rows_, int64_t cols)
      : rows(rows_), block(shape.block), nested(shape.nested) {
    const int64_t count = rows * cols, blocks = quant::block_count(count, block);
    const float scale = 2.0f / std::sqrt(static_cast<float>(cols));
    packed = Array(DType::u8, count / 2, 0);
    for (int64_t i = 0; i < count / 2; ++i) packed.host<uint8_t>()[i] = static_cast<uint8_t>(random.next());
    codes = Array(DType::u8, blocks, 0);
    absmax = Array(DType::f32, blocks, 0);
    for (int64_t i = 0; i < blocks; ++i) {
      codes.host<uint8_t>()[i] = static_cast<uint8_t>(random.next());
      absmax.host<float>()[i] = scale * static_cast<float>(0.5 + random.uniform());
    }
    groups = random_array(random, DType::f32, quant::block_count(blocks, quant::kNestedBlock), 0.3f * scale, 0);
    book = Array(DType::f32, 256, 0);
    for (int64_t i = 0; i < 256; ++i) book.set(i, quant::kDynamicSigned[static_cast<size_t>(i)]);
    bias = random_array(random, DType::f32, rows, 0.1f, 0);
    offset = scale;
    for (Array* array : {&packed, &codes, &absmax, &groups, &book, &bias}) array->upload(stream);
  }
  Matmul4BitJob job(device::CudaStream& stream, const MatmulOutput& out) {
    Absmax scales;
    if (nested)
      scales = {nullptr, codes.device<uint8_t>(stream), groups.device<float>(stream), book.device<float>(stream),
                offset};
    else
      scales.values = absmax.device<float>(stream);
    return {packed.device<uint8_t>(stream), scales, block, quant::kNf4.values.data(), rows, out};
  }
  int64_t rows, block;
  bool nested;
  float offset = 0;
  Array packed, codes, absmax, groups, book, bias;
};

constexpr int64_t kCapacity = 1280;

/// The products of a decoder layer, and its cache.
struct Layer {
  Layer(Random& random, device::CudaStream& stream, const ModelShape& shape)
      : q(random, stream, shape, shape.hidden, shape.hidden),
        k(random, stream, shape, shape.kv, shape.hidden),
        v(random, stream, shape, shape.kv, shape.hidden),
        o(random, stream, shape, shape.hidden, shape.hidden),
        gate(random, stream, shape, shape.mid, shape.hidden),
        up(random, stream, shape, shape.mid, shape.hidden),
        down(random, stream, shape, shape.hidden, shape.mid),
        norm(random_array(random, DType::f32, shape.hidden, 1, 0)) {
    norm.upload(stream);
    if (shape.head_dim > 0) keys = random_array(random, DType::bf16, shape.m * shape.kv * kCapacity, 1, 0);
    values = keys;
  }
  RandomWeight q, k, v, o, gate, up, down;
  Array norm, keys, values;
};

class ProgramTest : public GpuTest {
 protected:
  MatmulOutput output(Array& y, int64_t rows, RandomWeight* biased, bool accumulate = false) {
    return {y.device(stream()), rows, biased ? biased->bias.device<float>(stream()) : nullptr, accumulate, y.dtype()};
  }
  MatmulInput input(Array& x, const ModelShape& shape, int64_t cols) {
    return {x.device(stream()), shape.m, cols, shape.compute, false, x.dtype()};
  }
  void attend(Layer& layer, const ModelShape& shape) {
    const int64_t dim = shape.head_dim, each = shape.kv * kCapacity;
    const auto element = [&](Array& array, int64_t i) {
      return static_cast<void*>(array.device<char>(stream()) + i * size_of(array.dtype()));
    };
    std::vector<AttentionSequence> sequences;
    for (int64_t s = 0; s < shape.m; ++s)
      sequences.push_back({.q = element(q_, s * shape.hidden),
                           .k = element(layer.keys, s * each),
                           .v = element(layer.values, s * each),
                           .capacity = kCapacity,
                           .tokens = 1,
                           .past = kCapacity - 1,
                           .out = element(attended_, s * shape.hidden),
                           .past_at = pasts_.device<int32_t>(stream()) + s});
    const RotateAppendArgs rotation{.q = element(q_, 0),
                                    .k = element(k_, 0),
                                    .v = element(v_, 0),
                                    .q_stride = shape.hidden,
                                    .k_stride = shape.kv,
                                    .v_stride = shape.kv,
                                    .cos = angles_.device<float>(stream()),
                                    .sin = angles_.device<float>(stream()),
                                    .rotary_dim = dim,
                                    .interleaved = false,
                                    .heads = shape.hidden / dim,
                                    .kv_heads = shape.kv / dim,
                                    .head_dim = dim,
                                    .sequences = sequences.data(),
                                    .sequence_count = shape.m,
                                    .kv_dtype = DType::bf16,
                                    .x_dtype = DType::bf16};
    ASSERT_TRUE(cuda().rotate_attention(context, rotation,
                                        {.sequences = sequences.data(),
                                         .sequence_count = shape.m,
                                         .heads = shape.hidden / dim,
                                         .kv_heads = shape.kv / dim,
                                         .head_dim = dim,
                                         .q_stride = shape.hidden,
                                         .kv_dtype = DType::bf16,
                                         .scale = 0.1f,
                                         .q_dtype = DType::bf16}));
  }
  void enqueue(Layer& layer, const ModelShape& shape) {
    const auto biased = [&](RandomWeight& weight) { return shape.has_bias ? &weight : nullptr; };
    const std::array qkv{layer.q.job(stream(), output(q_, shape.hidden, biased(layer.q))),
                         layer.k.job(stream(), output(k_, shape.kv, biased(layer.k))),
                         layer.v.job(stream(), output(v_, shape.kv, biased(layer.v)))};
    Fused4BitArgs args{.input = input(hidden_, shape, shape.hidden)};
    args.norm_weight = layer.norm.device<float>(stream());
    args.eps = 1e-5f;
    args.jobs = qkv.data();
    args.count = 3;
    ASSERT_TRUE(cuda().matmul_4bit_fused(context, args));
    if (shape.head_dim > 0) attend(layer, shape);
    const auto o = layer.o.job(stream(), output(hidden_, shape.hidden, biased(layer.o), true));
    cuda().matmul_4bit(context, input(shape.head_dim > 0 ? attended_ : q_, shape, shape.hidden), &o, 1);
    const std::array gate_up{layer.gate.job(stream(), output(gate_, shape.mid, biased(layer.gate))),
                             layer.up.job(stream(), output(gate_, shape.mid, biased(layer.up)))};
    args.jobs = gate_up.data();
    args.count = 2;
    args.is_gated = true;
    args.gated_out = output(gate_, shape.mid, nullptr);
    ASSERT_TRUE(cuda().matmul_4bit_fused(context, args));
    const auto down = layer.down.job(stream(), output(hidden_, shape.hidden, biased(layer.down), true));
    cuda().matmul_4bit(context, input(gate_, shape, shape.mid), &down, 1);
  }
  /// hidden_ and the caches after a few steps over lengths that grow, each a run of one graph.
  std::vector<Array> run(const std::vector<std::unique_ptr<Layer>>& layers, const ModelShape& shape, const Array& start,
                         bool is_fused, const std::string& label) {
    hidden_ = start;
    hidden_.upload(stream());
    pasts_ = Array(DType::i32, shape.m, 0);
    angles_ = Array(DType::f32, shape.m * std::max<int64_t>(shape.head_dim, 2) / 2, 0);
    for (int64_t i = 0; i < angles_.count(); ++i) angles_.set(i, std::cos(static_cast<float>(i)));
    angles_.upload(stream());
    const auto set_pasts = [&](int step) {
      for (int64_t s = 0; s < shape.m; ++s)
        pasts_.host<int32_t>()[s] = static_cast<int32_t>(step * 150 + (s * 389 + 63) % 700 + step);
      pasts_.upload(stream());
    };
    const auto empty = [&](int64_t columns) { return Array(DType::bf16, shape.m * columns, 0); };
    q_ = empty(shape.hidden);
    k_ = empty(shape.kv);
    v_ = empty(shape.kv);
    gate_ = empty(shape.mid);
    attended_ = empty(shape.hidden);
    for (Array* array : {&q_, &k_, &v_, &gate_, &attended_}) array->device(stream());
    for (const auto& layer : layers) {
      layer->keys.upload(stream());
      layer->values.upload(stream());
    }
    set_pasts(0);
    for (const auto& layer : layers) enqueue(*layer, shape);  // leaves scratch memory in its place
    const auto graph = stream().capture(
        [&] {
          for (const auto& layer : layers) enqueue(*layer, shape);
        },
        [&](void* recorded) -> std::shared_ptr<void> {
          if (!is_fused) return nullptr;
          auto owned = cuda().fuse_graph(context, stream(), recorded);
          EXPECT_TRUE(owned) << label;
          return owned;
        });
    for (int step = 1; step < 4; ++step) {
      set_pasts(step);
      graph->launch();
      finish(label);
    }
    std::vector<Array> results;
    for (const auto& layer : layers)
      for (Array* array : {&layer->keys, &layer->values}) {
        if (shape.head_dim > 0) array->download(stream(), label);
        results.push_back(*array);
      }
    hidden_.download(stream(), label);
    results.push_back(hidden_);
    return results;
  }
  Array q_, k_, v_, gate_, hidden_, attended_, pasts_, angles_;
};

TEST_F(ProgramTest, StepsKeepTheirBits) {
  if (context.capability != 90) GTEST_SKIP() << "this GPU runs no programs";
  Random random(11);
  for (const ModelShape& shape : {
           ModelShape{512, 512, 1408, 1, DType::bf16, true},
           {4096, 4096, 11008, 1, DType::bf16, true, 64, false, 128},
           {4096, 1024, 14336, 1, DType::bf16, false},
           {2048, 256, 5504, 2, DType::bf16, true, 64, true, 64},
           {2048, 512, 4096, 3, DType::f16, true, 128},
           {2048, 512, 4096, 3, DType::bf16, true, 128, false, 128},
           {1024, 1024, 2752, 8, DType::bf16, true, 64, true, 128},
           {1024, 128, 2816, 4, DType::bf16, true, 4096, true, 128},
           {576, 192, 1536, 1, DType::bf16, true, 64, false, 64},
           {512, 512, 1408, 1, DType::bf16, false, 64, false, 64},
           {64, 64, 128, 5, DType::f16, false},
       }) {
    const std::string label = "hidden " + std::to_string(shape.hidden) + " m " + std::to_string(shape.m) +
                              " head_dim " + std::to_string(shape.head_dim);
    std::vector<std::unique_ptr<Layer>> layers;
    for (int i = 0; i < 3; ++i) layers.push_back(std::make_unique<Layer>(random, stream(), shape));
    const Array start = random_array(random, DType::f32, shape.m * shape.hidden, 1, 0);
    std::vector<Array> caches;
    for (const auto& layer : layers) caches.insert(caches.end(), {layer->keys, layer->values});
    const std::vector<Array> apart = run(layers, shape, start, false, label);
    for (size_t i = 0; i < layers.size(); ++i) {
      layers[i]->keys = caches[2 * i];
      layers[i]->values = caches[2 * i + 1];
    }
    const std::vector<Array> fused = run(layers, shape, start, true, label);
    for (size_t i = 0; i < apart.size(); ++i) expect_close(apart[i], fused[i], 0, label + " " + std::to_string(i));
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
