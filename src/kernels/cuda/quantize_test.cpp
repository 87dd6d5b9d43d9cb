// Quantize and dequantize entries on the GPU: the reference's bytes for every format, block, type and alignment.
#include <array>
#include <limits>
#include <utility>

#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

/// Values with zeros, denormals, infinities and NaN among them.
Array awkward_array(Random& random, DType dtype, int64_t count, int64_t offset) {
  Array x = random_array(random, dtype, count, 1, offset);
  const float awkward[] = {0.0f,
                           -0.0f,
                           1e-39f,
                           std::numeric_limits<float>::quiet_NaN(),
                           65504.0f,
                           -3e-5f,
                           std::numeric_limits<float>::infinity()};
  for (int64_t i = 0; i < count / 97; ++i)
    x.set(static_cast<int64_t>(random.next() % static_cast<uint64_t>(count)), awkward[random.next() % 7]);
  for (int64_t i = count / 3; i < std::min(count, count / 3 + 200); ++i) x.set(i, 0);
  return x;
}

class QuantizeGpuTest : public GpuTest {
 protected:
  void check_4bit(const quant::CodeBook4Bit& book, Array& x, int64_t block, int64_t offset, const std::string& label) {
    const int64_t count = x.count(), blocks = quant::block_count(count, block);
    Array packed(DType::u8, quant::packed_size_bytes(count), offset), absmax(DType::f32, blocks, offset);
    x.upload(stream());
    cuda().quantize_4bit(context, {x.device(stream()), x.dtype(), count, block, &book, packed.device<uint8_t>(stream()),
                                   absmax.device<float>(stream())});
    finish(label);
    Array expected_packed = packed, expected_absmax = absmax;
    reference().quantize_4bit(cpu, {x.host(), x.dtype(), count, block, &book, expected_packed.host<uint8_t>(),
                                    expected_absmax.host<float>()});
    packed.download(stream(), label);
    absmax.download(stream(), label);
    expect_close(expected_absmax, absmax, 0, label + " absmax");
    expect_close(expected_packed, packed, 0, label + " packed");
    for (const DType dtype : kFloatTypes) {
      Array out(dtype, count, offset);
      const Absmax plain{.values = absmax.device<float>(stream())};
      cuda().dequantize_4bit(context, {packed.device<uint8_t>(stream()), plain, count, block, book.values.data(),
                                       out.device(stream()), dtype});
      finish(label);
      Array expected = out;
      reference().dequantize_4bit(cpu, {packed.host<uint8_t>(),
                                        {.values = absmax.host<float>()},
                                        count,
                                        block,
                                        book.values.data(),
                                        expected.host(),
                                        dtype});
      out.download(stream(), label);
      expect_close(expected, out, 0, label + " decoded");
    }
  }

  void check_8bit(const float* book, Array& x, int64_t block, int64_t offset, const std::string& label) {
    const int64_t count = x.count(), blocks = quant::block_count(count, block);
    const DType dtype = x.dtype();
    Array codes(DType::u8, count, offset), absmax(DType::f32, blocks, offset), out(dtype, count, offset);
    x.upload(stream());
    cuda().quantize_8bit(context, {x.device(stream()), dtype, count, block, book, codes.device<uint8_t>(stream()),
                                   absmax.device<float>(stream())});
    cuda().dequantize_8bit(context, {codes.device<uint8_t>(stream()), absmax.device<float>(stream()), count, block,
                                     book, out.device(stream()), dtype});
    finish(label);
    Array expected_codes = codes, expected_absmax = absmax, expected_out = out;
    reference().quantize_8bit(
        cpu, {x.host(), dtype, count, block, book, expected_codes.host<uint8_t>(), expected_absmax.host<float>()});
    reference().dequantize_8bit(cpu, {expected_codes.host<uint8_t>(), expected_absmax.host<float>(), count, block, book,
                                      expected_out.host(), dtype});
    for (Array* array : {&codes, &absmax, &out}) array->download(stream(), label);
    expect_close(expected_absmax, absmax, 0, label + " absmax");
    expect_close(expected_codes, codes, 0, label + " codes");
    expect_close(expected_out, out, 0, label + " decoded");
  }
};

TEST_F(QuantizeGpuTest, FourBitGivesTheReferencesBytes) {
  Random random(1);
  for (const auto* book : {&quant::kNf4, &quant::kFp4})
    for (const DType dtype : kFloatTypes)
      for (const int64_t block : {32, 64, 256, 512, 4096, 10})
        for (const int64_t count :
             {int64_t{1}, int64_t{101}, int64_t{4096 * 9}, int64_t{4096 * 9 + 33}, int64_t{4096 * 9 + 40}})
          for (const int64_t offset : {0, 1}) {
            Array x = awkward_array(random, dtype, count, offset);
            check_4bit(
                *book, x, block, offset,
                std::string(name_of(dtype)) + " block " + std::to_string(block) + " count " + std::to_string(count));
          }
}

TEST_F(QuantizeGpuTest, EveryFloatNearAThresholdGetsTheReferencesCode) {
  for (const auto* book : {&quant::kNf4, &quant::kFp4}) {
    std::vector<float> values;
    for (const float threshold : book->thresholds)
      for (int step = -40; step <= 40; ++step) values.push_back(threshold * (1 + static_cast<float>(step) * 0x1p-23f));
    for (int cell = -33; cell <= 33; ++cell)
      for (int step = -2; step <= 2; ++step)
        values.push_back(static_cast<float>(cell) / 32 * (1 + static_cast<float>(step) * 0x1p-23f));
    Array x(DType::f32, static_cast<int64_t>((values.size() + 62) / 63 * 64), 0);
    for (int64_t i = 0, next = 0; i < x.count(); ++i) {
      const float value = next < static_cast<int64_t>(values.size()) ? values[static_cast<size_t>(next)] : 0.5f;
      x.set(i, i % 64 == 0 ? 1.0f : std::clamp(value, -1.0f, 1.0f));
      if (i % 64 != 0) ++next;
    }
    check_4bit(*book, x, 64, 0, "thresholds");
  }
}

TEST_F(QuantizeGpuTest, NestedAbsmaxDecodesAsTheReference) {
  Random random(2);
  for (const int64_t block : {32, 64, 2048})
    for (const int64_t count : {int64_t{64 * 1000}, int64_t{64 * 1000 + 5}}) {
      const int64_t blocks = quant::block_count(count, block), groups = quant::block_count(blocks, quant::kNestedBlock);
      Array packed(DType::u8, quant::packed_size_bytes(count), 0), codes(DType::u8, blocks);
      for (int64_t i = 0; i < packed.count(); ++i) packed.set(i, static_cast<float>(random.next() % 256));
      for (int64_t i = 0; i < blocks; ++i) codes.set(i, static_cast<float>(random.next() % 256));
      Array nested = random_array(random, DType::f32, groups), book(DType::f32, 256), out(DType::bf16, count, 0);
      for (int64_t i = 0; i < 256; ++i) book.set(i, quant::kDynamicSigned[static_cast<size_t>(i)]);
      for (Array* array : {&packed, &codes, &nested, &book}) array->upload(stream());
      const Absmax on_device{nullptr, codes.device<uint8_t>(stream()), nested.device<float>(stream()),
                             book.device<float>(stream()), 0.125f};
      cuda().dequantize_4bit(context, {packed.device<uint8_t>(stream()), on_device, count, block,
                                       quant::kNf4.values.data(), out.device(stream()), DType::bf16});
      finish("nested");
      Array expected = out;
      const Absmax on_host{nullptr, codes.host<uint8_t>(), nested.host<float>(), book.host<float>(), 0.125f};
      reference().dequantize_4bit(cpu, {packed.host<uint8_t>(), on_host, count, block, quant::kNf4.values.data(),
                                        expected.host(), DType::bf16});
      out.download(stream(), "nested");
      expect_close(expected, out, 0, "nested block " + std::to_string(block));
    }
}

TEST_F(QuantizeGpuTest, EightBitGivesTheReferencesBytes) {
  Random random(3);
  for (const float* book : {quant::kDynamicSigned.data(), quant::kDynamicUnsigned.data()})
    for (const DType dtype : kFloatTypes)
      for (const int64_t block : {1, 7, 8, 16, 256, 512, 2048, 4096, 8192})
        for (const int64_t count : {1, 300, 10007, 3 * 8192, 70000})
          for (const int64_t offset : {0, 1}) {
            Array x = awkward_array(random, dtype, count, offset);
            check_8bit(book, x, block, offset,
                       std::string(name_of(dtype)) + " block " + std::to_string(block) + " count " +
                           std::to_string(count) + (offset ? " misaligned" : ""));
          }
}

/// As well of a book whose values lie too close for one comparison.
TEST_F(QuantizeGpuTest, EveryFloatNearAnEightBitThresholdGetsTheReferencesCode) {
  std::array<float, 256> close;
  for (int i = 0; i < 256; ++i) close[static_cast<size_t>(i)] = i < 128 ? -0.5f + 0x1p-13f * i : 0x1p-26f * (i - 128);
  close[255] = 1;
  for (const float* book :
       {quant::kDynamicSigned.data(), quant::kDynamicUnsigned.data(), std::as_const(close).data()}) {
    std::vector<float> values{0.0f, -0.0f, 1e-45f, -1e-45f, 1e-30f, -1e-30f, 1, -1};
    for (int i = 0; i < 255; ++i)
      for (const float value : {(book[i] + book[i + 1]) * 0.5f, book[i]})
        for (int step = -8; step <= 8; ++step) values.push_back(value * (1 + static_cast<float>(step) * 0x1p-23f));
    Array x(DType::f32, static_cast<int64_t>((values.size() + 254) / 255 * 256), 0);
    for (int64_t i = 0, next = 0; i < x.count(); ++i) {
      const float value = next < static_cast<int64_t>(values.size()) ? values[static_cast<size_t>(next)] : 0.5f;
      x.set(i, i % 256 == 0 ? 1.0f : std::clamp(value, -1.0f, 1.0f));
      if (i % 256 != 0) ++next;
    }
    for (const int64_t block : {x.count(), int64_t{256}}) check_8bit(book, x, block, 0, "thresholds");
  }
}

TEST_F(QuantizeGpuTest, Int8RowsGiveTheReferencesBytes) {
  Random random(4);
  for (const DType dtype : kFloatTypes)
    for (const float threshold : {0.0f, 2.0f})
      for (const int64_t cols : {1, 100, 1025, 4096}) {
        const int64_t rows = 5;
        const std::string label = std::string(name_of(dtype)) + " cols " + std::to_string(cols);
        Array x = awkward_array(random, dtype, rows * cols, 1), q(DType::i8, rows * cols), absmax(DType::f32, rows);
        Array outliers(DType::u8, cols), out(dtype, rows * cols);
        for (int64_t i = 0; i < cols; ++i) outliers.set(i, 0);
        x.upload(stream());
        outliers.upload(stream());
        cuda().quantize_int8_rows(context,
                                  {x.device(stream()), dtype, rows, cols, threshold, q.device<int8_t>(stream()),
                                   absmax.device<float>(stream()), outliers.device<uint8_t>(stream())});
        cuda().dequantize_int8_rows(context, {q.device<int8_t>(stream()), absmax.device<float>(stream()), rows, cols,
                                              out.device(stream()), dtype});
        finish(label);
        Array expected_q = q, expected_absmax = absmax, expected_outliers = outliers, expected_out = out;
        reference().quantize_int8_rows(cpu, {x.host(), dtype, rows, cols, threshold, expected_q.host<int8_t>(),
                                             expected_absmax.host<float>(), expected_outliers.host<uint8_t>()});
        reference().dequantize_int8_rows(
            cpu, {expected_q.host<int8_t>(), expected_absmax.host<float>(), rows, cols, expected_out.host(), dtype});
        for (Array* array : {&q, &absmax, &outliers, &out}) array->download(stream(), label);
        expect_close(expected_absmax, absmax, 0, label + " absmax");
        expect_close(expected_outliers, outliers, 0, label + " outliers");
        expect_close(expected_q, q, 0, label + " codes");
        expect_close(expected_out, out, 0, label + " decoded");
      }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
