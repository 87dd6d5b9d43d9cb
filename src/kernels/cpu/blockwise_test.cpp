// The blockwise formats: same bits as the reference for any size, type, special value and threshold.
#include <array>

#include "kernels/cpu/op_case.h"

namespace nibble::kernels::cpu::testing {
namespace {

struct Book {
  const char* name;
  const quant::CodeBook4Bit* book;
};
constexpr Book kBooks[] = {{"nf4", &quant::kNf4}, {"fp4", &quant::kFp4}};

struct Map {
  const char* name;
  const float* values;
};
const Map kMaps[] = {{"signed", quant::kDynamicSigned.data()}, {"unsigned", quant::kDynamicUnsigned.data()}};

std::string label(const char* entry, const char* format, DType dtype, int64_t count, int64_t block) {
  return std::string(entry) + " " + format + " " + std::string(name_of(dtype)) + " count " + std::to_string(count) +
         " block " + std::to_string(block);
}

OpCase quantize_4bit_case(const Book& book, const Buffer& x, int64_t block,
                          Placement placement = Placement::misaligned) {
  return {label("quantize_4bit", book.name, x.dtype(), x.count(), block),
          [&book, &x, block, placement](const Kernels& k, const Context& c) {
            Outputs out{Buffer(DType::u8, quant::packed_size_bytes(x.count()), placement),
                        Buffer(DType::f32, quant::block_count(x.count(), block))};
            k.quantize_4bit(
                c, {x.data(), x.dtype(), x.count(), block, book.book, out[0].as<uint8_t>(), out[1].as<float>()});
            return out;
          }};
}

OpCase quantize_8bit_case(const Map& map, const Buffer& x, int64_t block, Placement placement = Placement::misaligned) {
  return {
      label("quantize_8bit", map.name, x.dtype(), x.count(), block),
      [&map, &x, block, placement](const Kernels& k, const Context& c) {
        Outputs out{Buffer(DType::u8, x.count(), placement), Buffer(DType::f32, quant::block_count(x.count(), block))};
        k.quantize_8bit(c,
                        {x.data(), x.dtype(), x.count(), block, map.values, out[0].as<uint8_t>(), out[1].as<float>()});
        return out;
      }};
}

/// Values that decide edges: zero of both signs, NaN, Inf, denormals, the largest and smallest normal numbers.
Buffer with_specials(Random& random, DType dtype, int64_t count, int64_t every) {
  constexpr std::array specials{0.0f,    -0.0f, NAN,      -NAN,     INFINITY, -INFINITY, 1e-45f,
                                -1e-40f, 3e38f, -3.4e38f, 1.2e-38f, 65504.0f, 6e-8f};
  Buffer x = random_buffer(random, dtype, count);
  for (int64_t i = 0; i < count; ++i)
    if (random.next() % static_cast<uint64_t>(every) == 0) x.set(i, specials[random.next() % specials.size()]);
  return x;
}

constexpr int64_t kCounts[] = {1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 200, 1000, 4095, 4096, 4097, 70001};

TEST(Blockwise, Quantize4BitAgreesForAnySize) {
  Random random(1);
  for (const auto& book : kBooks)
    for (const DType dtype : kFloatTypes)
      for (const int64_t count : kCounts)
        for (const int64_t block : {32, 64, 128, 512, 4096})
          check(quantize_4bit_case(book, random_buffer(random, dtype, count, 0.02f), block));
}

TEST(Blockwise, Quantize4BitAgreesOnSpecialValues) {
  Random random(2);
  for (const auto& book : kBooks)
    for (const DType dtype : kFloatTypes)
      for (const int64_t block : {32, 64, 256})
        for (const int64_t every : {2, 20, 500})
          check(quantize_4bit_case(book, with_specials(random, dtype, 8192, every), block));
}

TEST(Blockwise, Quantize4BitOfZeroAndTinyBlocks) {
  for (const auto& book : kBooks)
    for (const float fill : {0.0f, -0.0f, 1e-45f, 1.1754942e-38f, 1.1754944e-38f, 3.4028235e38f}) {
      Buffer x(DType::f32, 300);
      for (int64_t i = 0; i < x.count(); ++i) x.set(i, i % 3 ? fill : fill / 2);
      check(quantize_4bit_case(book, x, 64));
    }
}

/// Each threshold, with its neighbours a few ulp away, in blocks whose absmax is a power of two or not.
TEST(Blockwise, Quantize4BitDecidesThresholdsExactly) {
  for (const auto& book : kBooks)
    for (const float absmax : {1.0f, 0.5f, 3.0f, 0.0173f, 1e30f, 2e38f}) {
      std::vector<float> values;
      for (const float threshold : book.book->thresholds)
        for (int ulps = -3; ulps <= 3; ++ulps) {
          float t = threshold;
          for (int i = 0; i < std::abs(ulps); ++i) t = std::nextafterf(t, ulps < 0 ? -2.0f : 2.0f);
          values.push_back(t * absmax);
        }
      for (int cell = -16; cell <= 16; ++cell)  // and the grid that the fast encoder stands on
        for (const float unit : {16.0f, 15.999f}) values.push_back(static_cast<float>(cell) / unit * absmax);
      for (size_t i = 0; i < values.size(); i += 63) values.insert(values.begin() + static_cast<long>(i), absmax);
      Buffer x(DType::f32, static_cast<int64_t>(values.size()));
      for (int64_t i = 0; i < x.count(); ++i) x.set(i, values[static_cast<size_t>(i)]);
      for (const int64_t block : {32, 64, 4096}) check(quantize_4bit_case(book, x, block));
    }
}

/// Thresholds so close that cells cannot tell them apart.
TEST(Blockwise, Quantize4BitTakesAnyCodeBook) {
  Random random(3);
  quant::CodeBook4Bit crowded = quant::kNf4;
  for (size_t i = 0; i < 15; ++i) crowded.thresholds[i] = 0.01f * static_cast<float>(i) - 0.05f;
  crowded.nan_code = 9;
  const Book book{"crowded", &crowded};
  check(quantize_4bit_case(book, random_buffer(random, DType::f32, 5000), 64));
  check(quantize_4bit_case(book, with_specials(random, DType::bf16, 5000, 50), 64));
}

TEST(Blockwise, Quantize8BitAgreesForAnySize) {
  Random random(4);
  for (const auto& map : kMaps)
    for (const DType dtype : kFloatTypes)
      for (const int64_t count : kCounts)
        for (const int64_t block : {1, 7, 64, 100, 256, 4096})
          check(quantize_8bit_case(map, random_buffer(random, dtype, count, 0.02f), block));
}

TEST(Blockwise, Quantize8BitAgreesOnSpecialValues) {
  Random random(5);
  for (const auto& map : kMaps)
    for (const DType dtype : kFloatTypes)
      for (const int64_t block : {33, 64, 256})
        for (const int64_t every : {2, 20, 500})
          check(quantize_8bit_case(map, with_specials(random, dtype, 8192, every), block));
}

/// All midpoints and code values with their neighbours, at every magnitude that the maps resolve.
TEST(Blockwise, Quantize8BitDecidesMidpointsExactly) {
  for (const auto& map : kMaps)
    for (const float absmax : {1.0f, 0.25f, 3.0f, 0.0173f, 2e38f}) {
      std::vector<float> values{absmax};
      for (int i = 0; i < 256; ++i) {
        const float at[] = {map.values[i], i < 255 ? (map.values[i] + map.values[i + 1]) * 0.5f : 1.0f};
        for (const float center : at)
          for (int ulps = -2; ulps <= 2; ++ulps) {
            float t = center;
            for (int s = 0; s < std::abs(ulps); ++s) t = std::nextafterf(t, ulps < 0 ? -2.0f : 2.0f);
            values.push_back(t * absmax);
            values.push_back(-t * absmax);
          }
      }
      Buffer x(DType::f32, static_cast<int64_t>(values.size()));
      for (int64_t i = 0; i < x.count(); ++i) x.set(i, values[static_cast<size_t>(i)]);
      check(quantize_8bit_case(map, x, 8192));
    }
}

TEST(Blockwise, Quantize8BitTakesAnyAscendingMap) {
  Random random(6);
  std::vector<float> linear(256), crowded(256), doubled(256);
  for (int i = 0; i < 256; ++i) {
    linear[static_cast<size_t>(i)] = static_cast<float>(i) / 127.5f - 1;
    crowded[static_cast<size_t>(i)] = 0.9f + static_cast<float>(i) * 1e-6f;
    doubled[static_cast<size_t>(i)] = static_cast<float>(i < 128 ? i - 127 : i - 128) / 127.0f;  // zero twice
  }
  for (const auto& values : {linear, crowded, doubled}) {
    const Map map{"custom", values.data()};
    check(quantize_8bit_case(map, random_buffer(random, DType::f32, 5000), 64));
    check(quantize_8bit_case(map, with_specials(random, DType::bf16, 5000, 10), 64));
  }
}

struct Dequantized {
  Buffer codes, absmax, nested_codes, nested_absmax;
};

Dequantized random_codes(Random& random, int64_t bytes, int64_t blocks) {
  Dequantized d{Buffer(DType::u8, bytes), random_buffer(random, DType::f32, blocks), Buffer(DType::u8, blocks),
                random_buffer(random, DType::f32, quant::block_count(blocks, quant::kNestedBlock))};
  for (int64_t i = 0; i < bytes; ++i) d.codes.as<uint8_t>()[i] = static_cast<uint8_t>(random.next());
  for (int64_t i = 0; i < blocks; ++i) d.nested_codes.as<uint8_t>()[i] = static_cast<uint8_t>(random.next());
  constexpr float kEdges[] = {0.0f, 1e-39f, 3e-38f, 1e38f, INFINITY, NAN, -0.0f};
  for (int64_t i = 0; i < blocks; ++i)
    if (random.next() % 4 == 0) d.absmax.set(i, kEdges[random.next() % 7]);
  return d;
}

TEST(Blockwise, Dequantize4BitAgrees) {
  Random random(7);
  for (const auto& book : kBooks)
    for (const DType dtype : kFloatTypes)
      for (const int64_t count : kCounts)
        for (const int64_t block : {32, 64, 128, 4096})
          for (const bool nested : {false, true}) {
            const auto d = random_codes(random, quant::packed_size_bytes(count), quant::block_count(count, block));
            Absmax absmax{nullptr, d.nested_codes.as<uint8_t>(), d.nested_absmax.as<float>(),
                          quant::kDynamicSigned.data(), 0.37f};
            if (!nested) absmax = {d.absmax.as<float>(), nullptr, nullptr, nullptr, 0};
            check({label("dequantize_4bit", book.name, dtype, count, block), [&](const Kernels& k, const Context& c) {
                     Outputs out{Buffer(dtype, count)};
                     k.dequantize_4bit(c, {d.codes.as<uint8_t>(), absmax, count, block, book.book->values.data(),
                                           out[0].data(), dtype});
                     return out;
                   }});
          }
}

TEST(Blockwise, Dequantize8BitAgrees) {
  Random random(8);
  for (const auto& map : kMaps)
    for (const DType dtype : kFloatTypes)
      for (const int64_t count : kCounts)
        for (const int64_t block : {1, 7, 64, 100, 256, 4096}) {
          const auto d = random_codes(random, count, quant::block_count(count, block));
          check({label("dequantize_8bit", map.name, dtype, count, block), [&](const Kernels& k, const Context& c) {
                   Outputs out{Buffer(dtype, count)};
                   k.dequantize_8bit(c, {d.codes.as<uint8_t>(), d.absmax.as<float>(), count, block, map.values,
                                         out[0].data(), dtype});
                   return out;
                 }});
        }
}

/// Aligned outputs past the size from which stores go around the caches.
TEST(Blockwise, LargeOutputsAgree) {
  Random random(11);
  const int64_t count = (int64_t{8} << 20) + 77;
  Buffer x(DType::bf16, 2 * count);
  for (int64_t i = 0; i < x.count(); ++i) x.as<uint16_t>()[i] = static_cast<uint16_t>(random.next() & 0xbfff);
  check(quantize_4bit_case(kBooks[0], x, 64, Placement::aligned));
  check(quantize_8bit_case(kMaps[0], x, 256, Placement::aligned));
  const auto d = random_codes(random, count, quant::block_count(count, 64));
  for (const DType dtype : kFloatTypes) {
    check({label("dequantize_4bit", "large", dtype, count, 64), [&](const Kernels& k, const Context& c) {
             Outputs out{Buffer(dtype, count, Placement::aligned)};
             k.dequantize_4bit(c, {d.codes.as<uint8_t>(),
                                   {d.absmax.as<float>(), nullptr, nullptr, nullptr, 0},
                                   count,
                                   64,
                                   quant::kNf4.values.data(),
                                   out[0].data(),
                                   dtype});
             return out;
           }});
    check({label("dequantize_8bit", "large", dtype, count, 64), [&](const Kernels& k, const Context& c) {
             Outputs out{Buffer(dtype, count, Placement::aligned)};
             k.dequantize_8bit(
                 c, {d.codes.as<uint8_t>(), d.absmax.as<float>(), count, 64, kMaps[0].values, out[0].data(), dtype});
             return out;
           }});
  }
}

TEST(Blockwise, LargeInt8RowsAgree) {
  Random random(12);
  const int64_t rows = 2050, cols = 4096;
  Buffer x(DType::bf16, rows * cols);
  for (int64_t i = 0; i < x.count(); ++i) x.as<uint16_t>()[i] = static_cast<uint16_t>(random.next() & 0xbfff);
  check({label("quantize_int8_rows", "large", DType::bf16, rows * cols, cols), [&](const Kernels& k, const Context& c) {
           Outputs out{Buffer(DType::u8, rows * cols, Placement::aligned), Buffer(DType::f32, rows)};
           k.quantize_int8_rows(
               c, {x.data(), DType::bf16, rows, cols, 0, out[0].as<int8_t>(), out[1].as<float>(), nullptr});
           return out;
         }});
  const auto d = random_codes(random, rows * cols, rows);
  for (const DType dtype : kFloatTypes)
    check({label("dequantize_int8_rows", "large", dtype, rows * cols, cols), [&](const Kernels& k, const Context& c) {
             Outputs out{Buffer(dtype, rows * cols, Placement::aligned)};
             k.dequantize_int8_rows(c, {d.codes.as<int8_t>(), d.absmax.as<float>(), rows, cols, out[0].data(), dtype});
             return out;
           }});
}

TEST(Blockwise, QuantizeInt8RowsAgrees) {
  Random random(9);
  for (const DType dtype : kFloatTypes)
    for (const int64_t cols : {1, 5, 16, 33, 64, 577, 4096})
      for (const float threshold : {0.0f, 2.0f, 6.0f, 1e-3f})
        for (const bool special : {false, true}) {
          const int64_t rows = 9;
          Buffer x =
              special ? with_specials(random, dtype, rows * cols, 20) : random_buffer(random, dtype, rows * cols);
          for (int64_t c = 0; c < cols; ++c) x.set(3 * cols + c, 0);
          check({label("quantize_int8_rows", "", dtype, rows * cols, cols), [&](const Kernels& k, const Context& c) {
                   Outputs out{Buffer(DType::u8, rows * cols), Buffer(DType::f32, rows), Buffer(DType::u8, cols)};
                   for (int64_t i = 0; i < cols; ++i) out[2].set(i, 0);
                   k.quantize_int8_rows(c, {x.data(), dtype, rows, cols, threshold, out[0].as<int8_t>(),
                                            out[1].as<float>(), threshold > 0 ? out[2].as<uint8_t>() : nullptr});
                   return out;
                 }});
        }
}

TEST(Blockwise, DequantizeInt8RowsAgrees) {
  Random random(10);
  for (const DType dtype : kFloatTypes)
    for (const int64_t cols : {1, 5, 16, 33, 577}) {
      const int64_t rows = 7;
      const auto d = random_codes(random, rows * cols, rows);
      check(
          {label("dequantize_int8_rows", "", dtype, rows * cols, cols), [&](const Kernels& k, const Context& c) {
             Outputs out{Buffer(dtype, rows * cols)};
             k.dequantize_int8_rows(c, {d.codes.as<int8_t>(), d.absmax.as<float>(), rows, cols, out[0].data(), dtype});
             return out;
           }});
    }
}

}  // namespace
}  // namespace nibble::kernels::cpu::testing
