// include/nibble/quantize.h over the kernel table.
#include "nibble/quantize.h"

#include "base/checked.h"
#include "kernels/kernels.h"
#include "ops/backend.h"
#include "quant/double_quant.h"
#include "quant/format.h"

namespace nibble {
namespace {

void check_float(DType dtype, const char* what) {
  require(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
          "{}: dtype {} found, expected float32, bfloat16 or float16", what, name_of(dtype));
}

void check_size(size_t bytes, int64_t count, DType dtype, const char* what) {
  const int64_t expected = checked_mul(count, size_of(dtype), what);
  require(static_cast<int64_t>(bytes) == expected, "{}: found {} bytes, expected {} ({} elements of {})", what, bytes,
          expected, count, name_of(dtype));
}

const quant::CodeBook4Bit& code_book(std::string_view quant_type) {
  const quant::Format* format = quant::find_format(quant_type);
  require(format && format->code_book_4bit, "quant_type: found '{}', expected nf4 or fp4", quant_type);
  return *format->code_book_4bit;
}

kernels::Absmax absmax_of(const Quantized4Bit& tensor) {
  if (!tensor.nested) return {.values = tensor.absmax.data()};
  const NestedState& nested = *tensor.nested;
  return {.codes = nested.absmax.data(),
          .nested_absmax = nested.nested_absmax.data(),
          .nested_code_book = nested.nested_quant_map.data(),
          .offset = nested.offset};
}

}  // namespace

Quantized4Bit quantize_4bit(std::span<const std::byte> data, DType dtype, std::vector<int64_t> shape,
                            std::string_view quant_type, int64_t blocksize, bool compress_statistics, int threads) {
  check_float(dtype, "quantize_4bit");
  require(quant::is_valid_block_size(blocksize), "blocksize: found {}, expected 32, 64, ..., 4096", blocksize);
  const int64_t count = checked_count(shape, "quantize_4bit: shape");
  check_size(data.size(), count, dtype, "quantize_4bit");
  Quantized4Bit result;
  const auto& book = code_book(quant_type);
  result.packed.resize(static_cast<size_t>(quant::packed_size_bytes(count)));
  result.absmax.resize(static_cast<size_t>(quant::block_count(count, blocksize)));
  result.shape = std::move(shape);
  result.dtype = dtype;
  result.blocksize = blocksize;
  result.quant_type = quant_type;
  const ops::Backend backend(threads);
  backend.kernels().quantize_4bit(
      backend.context(), {data.data(), dtype, count, blocksize, &book, result.packed.data(), result.absmax.data()});
  if (compress_statistics) {
    quant::NestedAbsmax compressed = quant::compress_absmax(result.absmax);
    result.nested = NestedState{std::move(compressed.codes),
                                std::move(compressed.absmax),
                                {quant::kDynamicSigned.begin(), quant::kDynamicSigned.end()},
                                compressed.offset};
    result.absmax.clear();
  }
  return result;
}

std::vector<std::byte> dequantize_4bit(const Quantized4Bit& tensor, int threads) {
  const int64_t count = checked_count(tensor.shape, "dequantize_4bit: shape");
  const auto& book = code_book(tensor.quant_type);
  require(quant::is_valid_block_size(tensor.blocksize), "blocksize: found {}, expected 32, 64, ..., 4096",
          tensor.blocksize);
  const auto blocks = static_cast<size_t>(quant::block_count(count, tensor.blocksize));
  const auto packed = static_cast<size_t>(quant::packed_size_bytes(count));
  require(tensor.packed.size() == packed, "dequantize_4bit: found {} packed bytes, expected {}", tensor.packed.size(),
          packed);
  const size_t found = tensor.nested ? tensor.nested->absmax.size() : tensor.absmax.size();
  require(found == blocks, "dequantize_4bit: found {} absmax values, expected {}", found, blocks);
  if (tensor.nested)
    require(tensor.nested->nested_quant_map.size() == 256 &&
                tensor.nested->nested_absmax.size() == (blocks + quant::kNestedBlock - 1) / quant::kNestedBlock,
            "dequantize_4bit: nested statistics have the wrong size");
  std::vector<std::byte> out(static_cast<size_t>(checked_mul(count, size_of(tensor.dtype), "dequantize_4bit")));
  const ops::Backend backend(threads);
  backend.kernels().dequantize_4bit(
      backend.context(),
      {tensor.packed.data(), absmax_of(tensor), count, tensor.blocksize, book.values.data(), out.data(), tensor.dtype});
  return out;
}

QuantizedBlockwise quantize_blockwise(std::span<const std::byte> data, DType dtype, int64_t blocksize, bool is_signed,
                                      int threads) {
  check_float(dtype, "quantize_blockwise");
  require(blocksize > 0, "blocksize: found {}, expected a positive number", blocksize);
  const int64_t count = static_cast<int64_t>(data.size()) / size_of(dtype);
  check_size(data.size(), count, dtype, "quantize_blockwise");
  QuantizedBlockwise result;
  const auto& code = is_signed ? quant::kDynamicSigned : quant::kDynamicUnsigned;
  result.codes.resize(static_cast<size_t>(count));
  result.absmax.resize(static_cast<size_t>(quant::block_count(count, blocksize)));
  result.code.assign(code.begin(), code.end());
  result.blocksize = blocksize;
  result.dtype = dtype;
  const ops::Backend backend(threads);
  backend.kernels().quantize_8bit(backend.context(), {data.data(), dtype, count, blocksize, code.data(),
                                                      result.codes.data(), result.absmax.data()});
  return result;
}

std::vector<std::byte> dequantize_blockwise(const QuantizedBlockwise& tensor, int threads) {
  check_float(tensor.dtype, "dequantize_blockwise");
  require(tensor.blocksize > 0, "blocksize: found {}, expected a positive number", tensor.blocksize);
  const auto count = static_cast<int64_t>(tensor.codes.size());
  require(tensor.code.size() == 256, "dequantize_blockwise: found {} code book values, expected 256",
          tensor.code.size());
  require(static_cast<int64_t>(tensor.absmax.size()) == quant::block_count(count, tensor.blocksize),
          "dequantize_blockwise: found {} absmax values, expected {}", tensor.absmax.size(),
          quant::block_count(count, tensor.blocksize));
  std::vector<std::byte> out(static_cast<size_t>(checked_mul(count, size_of(tensor.dtype), "dequantize_blockwise")));
  const ops::Backend backend(threads);
  backend.kernels().dequantize_8bit(
      backend.context(), {tensor.codes.data(), tensor.absmax.data(), count, tensor.blocksize, tensor.code.data(),
                          out.data(), tensor.dtype});
  return out;
}

QuantizedRows int8_vectorwise_quant(std::span<const std::byte> data, DType dtype, int64_t rows, int64_t cols,
                                    double threshold, int threads) {
  check_float(dtype, "int8_vectorwise_quant");
  const int64_t count = checked_count(std::vector<int64_t>{rows, cols}, "int8_vectorwise_quant: shape");
  check_size(data.size(), count, dtype, "int8_vectorwise_quant");
  require(threshold >= 0, "threshold: found {}, expected a number of 0 or more", threshold);
  QuantizedRows result;
  result.rows = rows;
  result.cols = cols;
  result.values.resize(static_cast<size_t>(count));
  result.absmax.resize(static_cast<size_t>(rows));
  std::vector<uint8_t> outliers(static_cast<size_t>(cols), 0);
  const ops::Backend backend(threads);
  backend.kernels().quantize_int8_rows(
      backend.context(), {data.data(), dtype, rows, cols, static_cast<float>(threshold), result.values.data(),
                          result.absmax.data(), outliers.data()});
  for (int64_t column = 0; column < cols; ++column) {
    if (!outliers[static_cast<size_t>(column)]) continue;
    result.outlier_columns.push_back(column);
    if (rows > 1)  // as bitsandbytes: the whole column is left to the 16-bit product
      for (int64_t row = 0; row < rows; ++row) result.values[static_cast<size_t>(row * cols + column)] = 0;
  }
  return result;
}

std::vector<float> int8_vectorwise_dequant(const QuantizedRows& tensor, int threads) {
  const int64_t count = checked_count(std::vector<int64_t>{tensor.rows, tensor.cols}, "int8_vectorwise_dequant: shape");
  require(
      static_cast<int64_t>(tensor.values.size()) == count && static_cast<int64_t>(tensor.absmax.size()) == tensor.rows,
      "int8_vectorwise_dequant: found {} values and {} scales, expected {} and {}", tensor.values.size(),
      tensor.absmax.size(), count, tensor.rows);
  std::vector<float> out(static_cast<size_t>(count));
  const ops::Backend backend(threads);
  backend.kernels().dequantize_int8_rows(backend.context(), {tensor.values.data(), tensor.absmax.data(), tensor.rows,
                                                             tensor.cols, out.data(), DType::f32});
  return out;
}

}  // namespace nibble
