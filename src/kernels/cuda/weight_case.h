// 4-bit weights of the tests of GPU matmul.
#pragma once

#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {

struct Shape {
  int64_t m, rows, cols, block;
};

/// A 4-bit weight on both sides, and its decoded values.
struct Weight4Bit {
  Weight4Bit(Random& random, const Shape& shape, bool nested_, const quant::CodeBook4Bit& b, int64_t offset)
      : rows(shape.rows), cols(shape.cols), block(shape.block), nested(nested_), book(&b) {
    const int64_t count = rows * cols, blocks = quant::block_count(count, block);
    packed = Array(DType::u8, quant::packed_size_bytes(count), offset);
    for (int64_t i = 0; i < packed.count(); ++i) packed.set(i, static_cast<float>(random.next() % 256));
    absmax = Array(DType::f32, blocks, offset);
    codes = Array(DType::u8, blocks, offset);
    groups = random_array(random, DType::f32, quant::block_count(blocks, quant::kNestedBlock), 1, offset);
    nested_book = Array(DType::f32, 256, offset);
    for (int64_t i = 0; i < 256; ++i) nested_book.set(i, quant::kDynamicSigned[static_cast<size_t>(i)]);
    for (int64_t i = 0; i < blocks; ++i) {
      absmax.set(i, static_cast<float>(0.02 + 0.05 * random.uniform()));
      codes.set(i, static_cast<float>(random.next() % 256));
      if (nested)
        absmax.set(i,
                   nested_book.get(static_cast<int64_t>(codes.get(i))) * groups.get(i / quant::kNestedBlock) + kOffset);
    }
    for (int64_t i = 0; i < count; ++i)
      decoded.push_back(book->values[static_cast<size_t>(packed.host<uint8_t>()[i / 2] >> (i % 2 ? 0 : 4) & 15)] *
                        absmax.host<float>()[i / block]);
    bias = random_array(random, DType::f32, rows, 1, offset);
  }

  Matmul4BitJob job(device::CudaStream& stream, void* y, int64_t y_stride, bool with_bias, bool accumulate,
                    DType y_dtype = DType::f32) {
    for (Array* array : {&packed, &absmax, &codes, &groups, &nested_book, &bias}) array->upload(stream);
    Absmax a;
    if (nested)
      a = {nullptr, codes.device<uint8_t>(stream), groups.device<float>(stream), nested_book.device<float>(stream),
           kOffset};
    else
      a.values = absmax.device<float>(stream);
    return {packed.device<uint8_t>(stream),
            a,
            block,
            book->values.data(),
            rows,
            {y, y_stride, with_bias ? bias.device<float>(stream) : nullptr, accumulate, y_dtype}};
  }

  /// Small integers and quarters, which every kernel sums without an error, for absmax and bias; `decoded` stays
  /// behind.
  void make_exact(Random& random) {
    for (int64_t i = 0; i < absmax.count(); ++i) absmax.set(i, static_cast<float>(1 << random.next() % 3));
    for (int64_t i = 0; i < groups.count(); ++i) groups.set(i, static_cast<float>(1 + random.next() % 2));
    for (int64_t i = 0; i < 256; ++i) nested_book.set(i, 0.25f * static_cast<float>(1 + i % 4));
    for (int64_t i = 0; i < rows; ++i) bias.set(i, static_cast<float>(random.next() % 64));
  }

  static constexpr float kOffset = 0.75f;
  int64_t rows, cols, block;
  bool nested;
  const quant::CodeBook4Bit* book;
  Array packed, absmax, codes, groups, nested_book, bias;
  std::vector<float> decoded;
};

/// For Weight4Bit::make_exact.
inline quant::CodeBook4Bit exact_book() {
  quant::CodeBook4Bit book{};
  for (int i = 0; i < 16; ++i) book.values[static_cast<size_t>(i)] = static_cast<float>(i - 7);
  return book;
}

/// bf16 from -2 to 2, on the GPU too.
inline Array exact_activations(Random& random, int64_t count, device::CudaStream& stream) {
  Array x(DType::bf16, count, 0);
  for (int64_t i = 0; i < count; ++i) x.set(i, static_cast<float>(random.next() % 5) - 2);
  x.upload(stream);
  return x;
}

}  // namespace nibble::kernels::cuda::testing
