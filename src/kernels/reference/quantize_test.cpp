// Properties of the blockwise and row-wise formats: every block size, odd counts, tails, special values, error
// statistics.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "kernels/reference/table.h"
#include "quant/double_quant.h"

namespace nibble::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

const Kernels& reference() { return reference::table(); }

std::vector<float> normal(size_t count, uint64_t seed = 1) {
  Random random(seed);
  std::vector<float> x(count);
  for (float& value : x) value = static_cast<float>(random.normal());
  return x;
}

struct Blocks {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  bool operator==(const Blocks&) const = default;
};

Blocks quantize_4bit(const std::vector<float>& x, int64_t block, const quant::CodeBook4Bit& book,
                     ThreadPool* pool = nullptr) {
  const auto count = static_cast<int64_t>(x.size());
  Blocks result{std::vector<uint8_t>(static_cast<size_t>(quant::packed_size_bytes(count))),
                std::vector<float>(static_cast<size_t>(quant::block_count(count, block)))};
  reference().quantize_4bit({pool},
                            {x.data(), DType::f32, count, block, &book, result.codes.data(), result.absmax.data()});
  return result;
}

std::vector<float> dequantize_4bit(const Blocks& q, size_t count, int64_t block, const quant::CodeBook4Bit& book) {
  std::vector<float> out(count);
  reference().dequantize_4bit({}, {q.codes.data(),
                                   {.values = q.absmax.data()},
                                   static_cast<int64_t>(count),
                                   block,
                                   book.values.data(),
                                   out.data(),
                                   DType::f32});
  return out;
}

const std::vector<size_t> kCounts{1, 2, 31, 32, 33, 63, 64, 65, 127, 1000, 4095, 4096, 4097, 12289};

TEST(Quantize4Bit, EveryBlockSizeAndCountKeepsWithinHalfAGap) {
  for (const auto* book : {&quant::kNf4, &quant::kFp4})
    for (int64_t block = 32; block <= 4096; block *= 2)
      for (const size_t count : kCounts) {
        const std::vector<float> x = normal(count, static_cast<uint64_t>(block) + count);
        const Blocks q = quantize_4bit(x, block, *book);
        const std::vector<float> back = dequantize_4bit(q, count, block, *book);
        for (size_t i = 0; i < count; ++i) {
          const float absmax = q.absmax[i / static_cast<size_t>(block)];
          ASSERT_LE(std::fabs(x[i]), absmax);
          ASSERT_LE(std::fabs(back[i] - x[i]), (book == &quant::kNf4 ? 0.152f : 0.1667f) * absmax)
              << block << " " << count << " " << i;
          if (std::fabs(x[i]) == absmax) {
            ASSERT_EQ(back[i], x[i]);
          }
        }
      }
}

TEST(Quantize4Bit, QuantizingWhatWasDequantizedChangesNothing) {
  for (const auto* book : {&quant::kNf4, &quant::kFp4})
    for (const int64_t block : {32, 64, 256, 4096})
      for (const size_t count : kCounts) {
        const Blocks q = quantize_4bit(normal(count), block, *book);
        const Blocks again = quantize_4bit(dequantize_4bit(q, count, block, *book), block, *book);
        ASSERT_EQ(again.absmax, q.absmax);
        std::vector<float> a = dequantize_4bit(q, count, block, *book);
        ASSERT_EQ(dequantize_4bit(again, count, block, *book), a);
        if (book == &quant::kNf4) {
          ASSERT_EQ(again.codes, q.codes) << block << " " << count;
        }
      }
}

TEST(Quantize4Bit, ABlockDependsOnNothingElse) {
  std::vector<float> x = normal(640);
  const Blocks before = quantize_4bit(x, 64, quant::kNf4);
  for (size_t i = 128; i < 192; ++i) x[i] = 1e30f;
  const Blocks after = quantize_4bit(x, 64, quant::kNf4);
  for (size_t b = 0; b < 10; ++b) {
    if (b == 2) continue;
    EXPECT_EQ(before.absmax[b], after.absmax[b]);
    EXPECT_TRUE(std::equal(before.codes.begin() + static_cast<int64_t>(b) * 32,
                           before.codes.begin() + static_cast<int64_t>(b + 1) * 32,
                           after.codes.begin() + static_cast<int64_t>(b) * 32));
  }
}

TEST(Quantize4Bit, ThreadsChangeNothing) {
  ThreadPool pool(3);
  const std::vector<float> x = normal(100001);
  EXPECT_EQ(quantize_4bit(x, 64, quant::kNf4), quantize_4bit(x, 64, quant::kNf4, &pool));
}

TEST(Quantize4Bit, MeanErrorOfNormalValues) {
  const std::vector<float> x = normal(1 << 20);
  const auto mean_error = [&](const quant::CodeBook4Bit& book) {
    const std::vector<float> back = dequantize_4bit(quantize_4bit(x, 64, book), x.size(), 64, book);
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += std::fabs(back[i] - x[i]);
    return sum / static_cast<double>(x.size());
  };
  EXPECT_NEAR(mean_error(quant::kNf4), 0.0728, 0.0002);
  EXPECT_NEAR(mean_error(quant::kFp4), 0.0965, 0.0003);
}

TEST(Quantize4Bit, ZeroAndDenormalBlocks) {
  for (const float value : {0.0f, -0.0f, 1e-39f, -1e-45f, kNan}) {
    const Blocks q = quantize_4bit(std::vector<float>(65, value), 64, quant::kNf4);
    EXPECT_EQ(q.absmax, (std::vector<float>{0, 0})) << value;
    EXPECT_EQ(q.codes, std::vector<uint8_t>(33, 0)) << value;
    for (const float back : dequantize_4bit(q, 65, 64, quant::kNf4)) EXPECT_EQ(back, 0);
  }
  const float smallest = std::numeric_limits<float>::min();  // the smallest absmax that counts
  const Blocks q = quantize_4bit({smallest, -smallest, smallest / 2, 0}, 64, quant::kNf4);
  EXPECT_EQ(q.absmax[0], smallest);
  EXPECT_EQ(q.codes, (std::vector<uint8_t>{0xf0, 0xc7}));
}

TEST(Quantize4Bit, NanAndInf) {
  const Blocks nan = quantize_4bit({1, kNan, -0.5f, 0}, 64, quant::kNf4);
  EXPECT_EQ(nan.absmax[0], 1);
  EXPECT_EQ(nan.codes, (std::vector<uint8_t>{0xf0, 0x27}));
  EXPECT_EQ(quantize_4bit({1, kNan, -0.5f, 0}, 64, quant::kFp4).codes, (std::vector<uint8_t>{0x30, 0xd0}));
  const Blocks inf = quantize_4bit({1, kInf, -kInf, -1}, 64, quant::kNf4);
  EXPECT_EQ(inf.absmax[0], kInf);
  EXPECT_EQ(inf.codes, (std::vector<uint8_t>{0x70, 0x07}));
}

TEST(Quantize4Bit, LargestFloatsDoNotOverflow) {
  const float largest = std::numeric_limits<float>::max();
  const Blocks q = quantize_4bit({largest, -largest, largest / 2, 0}, 64, quant::kNf4);
  EXPECT_EQ(q.absmax[0], largest);
  EXPECT_EQ(q.codes, (std::vector<uint8_t>{0xf0, 0xc7}));
}

TEST(Quantize4Bit, HalfPrecisionInputIsExact) {
  const std::vector<float> x = normal(333);
  std::vector<bf16_t> narrow(x.size());
  std::vector<float> wide(x.size());
  for (size_t i = 0; i < x.size(); ++i) wide[i] = to_float(narrow[i] = to_bf16(x[i]));
  Blocks q = quantize_4bit(wide, 64, quant::kNf4);
  Blocks from_narrow{std::vector<uint8_t>(q.codes.size()), std::vector<float>(q.absmax.size())};
  reference().quantize_4bit(
      {}, {narrow.data(), DType::bf16, 333, 64, &quant::kNf4, from_narrow.codes.data(), from_narrow.absmax.data()});
  EXPECT_EQ(from_narrow, q);
}

TEST(Dequantize4Bit, NestedStatisticsAreTheFormula) {
  const std::vector<float> x = normal(64 * 300);
  const Blocks q = quantize_4bit(x, 64, quant::kNf4);
  const quant::NestedAbsmax nested = quant::compress_absmax(q.absmax);
  std::vector<float> absmax(q.absmax.size());
  quant::expand_absmax(nested.codes, nested.absmax, quant::kDynamicSigned.data(), nested.offset, absmax);
  std::vector<float> out(x.size());
  const Absmax view{nullptr, nested.codes.data(), nested.absmax.data(), quant::kDynamicSigned.data(), nested.offset};
  reference().dequantize_4bit({}, {q.codes.data(), view, static_cast<int64_t>(x.size()), 64, quant::kNf4.values.data(),
                                   out.data(), DType::f32});
  EXPECT_EQ(out, dequantize_4bit({q.codes, absmax}, x.size(), 64, quant::kNf4));
}

Blocks quantize_8bit(const std::vector<float>& x, int64_t block, const float* book) {
  const auto count = static_cast<int64_t>(x.size());
  Blocks result{std::vector<uint8_t>(x.size()),
                std::vector<float>(static_cast<size_t>(quant::block_count(count, block)))};
  reference().quantize_8bit({}, {x.data(), DType::f32, count, block, book, result.codes.data(), result.absmax.data()});
  return result;
}

std::vector<float> dequantize_8bit(const Blocks& q, int64_t block, const float* book) {
  std::vector<float> out(q.codes.size());
  reference().dequantize_8bit(
      {}, {q.codes.data(), q.absmax.data(), static_cast<int64_t>(out.size()), block, book, out.data(), DType::f32});
  return out;
}

TEST(Quantize8Bit, AnyBlockSizeAndCountKeepsWithinHalfAGap) {
  for (const int64_t block : {1, 7, 64, 100, 256, 4096, 16384})
    for (const size_t count : kCounts) {
      const std::vector<float> x = normal(count);
      const Blocks q = quantize_8bit(x, block, quant::kDynamicSigned.data());
      const std::vector<float> back = dequantize_8bit(q, block, quant::kDynamicSigned.data());
      for (size_t i = 0; i < count; ++i)
        ASSERT_LE(std::fabs(back[i] - x[i]), 0.0071f * q.absmax[i / static_cast<size_t>(block)])
            << block << " " << count;
    }
}

TEST(Quantize8Bit, SpecialValues) {
  const float* book = quant::kDynamicSigned.data();
  for (const float value : {0.0f, -0.0f, 1e-39f, kNan}) {
    const Blocks q = quantize_8bit(std::vector<float>(5, value), 4, book);
    EXPECT_EQ(q.codes, std::vector<uint8_t>(5, 0));
    EXPECT_EQ(q.absmax, (std::vector<float>{0, 0}));
  }
  EXPECT_EQ(quantize_8bit({1, kNan, 0, -1}, 4, book).codes, (std::vector<uint8_t>{255, 0, 127, 0}));
  EXPECT_EQ(quantize_8bit({1, kInf, -kInf, -1}, 4, book).codes, (std::vector<uint8_t>{127, 0, 0, 127}));
}

TEST(Quantize8Bit, QuantizingWhatWasDequantizedChangesNothing) {
  std::vector<float> x = normal(1000);
  for (float& value : x) value = value * value;
  const Blocks q = quantize_8bit(x, 100, quant::kDynamicUnsigned.data());
  EXPECT_EQ(quantize_8bit(dequantize_8bit(q, 100, quant::kDynamicUnsigned.data()), 100, quant::kDynamicUnsigned.data()),
            q);
}

struct Rows {
  std::vector<int8_t> q;
  std::vector<float> absmax;
  std::vector<uint8_t> outliers;
};

Rows quantize_int8(const std::vector<float>& x, int64_t cols, float threshold) {
  const auto rows = static_cast<int64_t>(x.size()) / cols;
  Rows result{std::vector<int8_t>(x.size()), std::vector<float>(static_cast<size_t>(rows)),
              std::vector<uint8_t>(static_cast<size_t>(cols))};
  reference().quantize_int8_rows(
      {}, {x.data(), DType::f32, rows, cols, threshold, result.q.data(), result.absmax.data(), result.outliers.data()});
  return result;
}

TEST(QuantizeInt8Rows, OutliersAreLeftOut) {
  const Rows rows = quantize_int8({1, 6, -2, 0.5f, -7, 3}, 3, 6.0f);
  EXPECT_EQ(rows.absmax, (std::vector<float>{2, 3}));
  EXPECT_EQ(rows.q, (std::vector<int8_t>{64, 0, -127, 21, 0, 127}));
  EXPECT_EQ(rows.outliers, (std::vector<uint8_t>{0, 1, 0}));
  const Rows all = quantize_int8({1, 6, -2, 0.5f, -7, 3}, 3, 0);
  EXPECT_EQ(all.absmax, (std::vector<float>{6, 7}));
  EXPECT_EQ(all.outliers, (std::vector<uint8_t>{0, 0, 0}));
}

TEST(QuantizeInt8Rows, SpecialRows) {
  const Rows rows = quantize_int8({0, 0, -0.0f, kNan, 1, -1, kInf, 1, kNan, 8, -9, 7}, 3, 0);
  EXPECT_EQ(rows.absmax, (std::vector<float>{0, 1, kInf, 9}));
  EXPECT_EQ(rows.q, (std::vector<int8_t>{0, 0, 0, 0, 127, -127, 0, 0, 0, 113, -127, 99}));
  EXPECT_EQ(quantize_int8({8, -9, 7}, 3, 6).absmax[0], 0);  // nothing but outliers
}

TEST(QuantizeInt8Rows, RoundsToHalfPrecisionFirst) {
  const Rows rows = quantize_int8({2049, 1e-9f, 1, 70000, 1, 2}, 3, 0);
  EXPECT_EQ(rows.absmax, (std::vector<float>{2048, kInf}));
  EXPECT_EQ(rows.q, (std::vector<int8_t>{127, 0, 0, 0, 0, 0}));
}

TEST(QuantizeInt8Rows, ErrorIsHalfAStep) {
  const std::vector<float> x = normal(50 * 37);
  const Rows rows = quantize_int8(x, 37, 0);
  std::vector<float> back(x.size());
  reference().dequantize_int8_rows({}, {rows.q.data(), rows.absmax.data(), 50, 37, back.data(), DType::f32});
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_NEAR(back[i], to_float(to_f16(x[i])), rows.absmax[i / 37] * 0.50001f / 127);
}

// Element 3 * 10^9 of a table that is reserved but never filled: an index in 32 bits would fault or read elsewhere.
TEST(Embed, IndexesBeyond32Bits) {
  constexpr int64_t kCols = 1024;
  constexpr int64_t kRow = 3'000'000;
  constexpr size_t kBytes = size_t{kRow + 1} * kCols * sizeof(bf16_t);
  void* table = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (table == MAP_FAILED) GTEST_SKIP() << "no address space to reserve";
  static_cast<bf16_t*>(table)[kRow * kCols + 5] = to_bf16(3.0f);
  const int32_t id = kRow;
  std::vector<float> out(kCols);
  reference().embed({}, {table, DType::bf16, &id, 1, kCols, 2.0f, out.data()});
  EXPECT_EQ(out[5], 6);
  EXPECT_EQ(out[4], 0);
  munmap(table, kBytes);
}

}  // namespace
}  // namespace nibble::kernels
