// The GGUF reader and block decoders against files that the gguf package wrote, and against files that lie.
#include "checkpoint/gguf.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/half.h"
#include "checkpoint/checkpoint_samples_test.h"

namespace nibble {
namespace {

using samples::error_of;
using samples::ExactBytes;

std::filesystem::path gguf_path(const char* name) { return std::filesystem::path(NIBBLE_TEST_DATA) / "gguf" / name; }

TEST(Gguf, BlocksDecodeToTheSameBits) {
  const auto file = GgufFile::open(gguf_path("blocks.gguf"));
  int compared = 0;
  for (const auto& tensor : file->tensors()) {
    const GgufTensor* golden = file->find_tensor(tensor.name + ".floats");
    if (!golden) continue;
    EXPECT_EQ(find_ggml_type(tensor.type)->name, tensor.name);
    const Tensor found = file->decode(tensor, DType::f32), expected = file->decode(*golden, DType::f32);
    ASSERT_EQ(found.count(), expected.count()) << tensor.name;
    for (int64_t i = 0; i < found.count(); ++i)
      ASSERT_EQ(found.as<uint32_t>()[i], expected.as<uint32_t>()[i]) << tensor.name << " value " << i;
    const Tensor rounded = file->decode(tensor, DType::bf16), half = file->decode(tensor, DType::f16);
    for (int64_t i = 0; i < found.count(); ++i) {
      ASSERT_EQ(rounded.as<bf16_t>()[i].bits, to_bf16(found.as<float>()[i]).bits);
      ASSERT_EQ(half.as<f16_t>()[i].bits, to_f16(found.as<float>()[i]).bits);
    }
    ++compared;
  }
  EXPECT_EQ(compared, 14);
}

TEST(Gguf, ReadsEveryKindOfValue) {
  const auto file = GgufFile::open(gguf_path("values.gguf"));
  EXPECT_EQ(*file->find_text("general.architecture"), "values");
  EXPECT_EQ(file->find_integer("u8"), 200);
  EXPECT_EQ(file->find_integer("i8"), -100);
  EXPECT_EQ(file->find_integer("u16"), 60000);
  EXPECT_EQ(file->find_integer("i16"), -30000);
  EXPECT_EQ(file->find_integer("u32"), 4000000000);
  EXPECT_EQ(file->find_integer("i32"), -2000000000);
  EXPECT_EQ(std::get<uint64_t>(file->find("u64")->value), (uint64_t{1} << 63) + 1);
  EXPECT_EQ(file->find_integer("i64"), -(int64_t{1} << 62));
  EXPECT_EQ(file->find_number("f32"), 0.1f);
  EXPECT_EQ(file->find_number("f64"), 0.1);
  EXPECT_EQ(file->find_number("u8"), 200.0);
  EXPECT_EQ(file->find_bool("bool"), true);
  EXPECT_EQ(*file->find_text("text"), "ünïcode ▁");
  const GgufArray& texts = *file->find_array("texts");
  ASSERT_EQ(texts.size(), 3u);
  EXPECT_EQ(std::get<std::string>(texts[2].value), "c");
  EXPECT_EQ(std::get<int64_t>(file->find_array("ints")->at(1).value), -2);
  EXPECT_EQ(file->find_integer("nowhere"), std::nullopt);
  EXPECT_EQ(file->find_text("nowhere"), nullptr);
  error_of([&] { file->find_integer("text"); }, ErrorCode::corrupt_file);
  error_of([&] { file->find_integer("u64"); }, ErrorCode::corrupt_file);
  error_of([&] { file->find_text("u8"); }, ErrorCode::corrupt_file);
  EXPECT_NE(error_of([&] { file->get_integer("nowhere"); }, ErrorCode::corrupt_file).find("nowhere"),
            std::string::npos);

  const GgufTensor& matrix = *file->find_tensor("matrix");
  EXPECT_EQ(matrix.shape, (Shape{2, 3}));
  EXPECT_EQ(matrix.offset % 64, 0u);
  EXPECT_EQ(file->decode(matrix, DType::f32).as<float>()[5], 5.0f);
  EXPECT_EQ(file->decode(*file->find_tensor("vector"), DType::f32).as<float>()[2], 2.0f);
}

void read_all(const std::string& text) {
  const ExactBytes bytes(text);
  const auto file = GgufFile::parse(bytes.span(), "sample");
  for (const auto& tensor : file->tensors()) file->decode(tensor, DType::f32);
}

TEST(Gguf, TruncatedAnywhereIsAnError) {
  const std::string whole = read_file(gguf_path("values.gguf"));
  const auto file = GgufFile::open(gguf_path("values.gguf"));
  size_t end = 0;  // what follows is padding
  for (const auto& tensor : file->tensors())
    end = std::max(end, tensor.offset + static_cast<size_t>(tensor.size_bytes));
  for (size_t size = 0; size < end; ++size) EXPECT_THROW(read_all(whole.substr(0, size)), Error) << size;
  read_all(whole.substr(0, end));
}

TEST(Gguf, AnyChangedByteParsesOrIsAnError) {
  const std::string whole = read_file(gguf_path("values.gguf"));
  for (size_t i = 0; i < whole.size(); ++i)
    for (const int flip : {0x01, 0x02, 0x80, 0xff}) {
      std::string changed = whole;
      changed[i] = static_cast<char>(changed[i] ^ flip);
      try {
        read_all(changed);
      } catch (const Error&) {
      }
    }
}

// Builds a file from numbers; texts as length and bytes.
struct Builder {
  template <typename T>
  Builder& number(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Builder& text(const std::string& value) {
    number(uint64_t{value.size()});
    text_ += value;
    return *this;
  }
  Builder& tensor(const std::string& name, std::vector<uint64_t> dimensions, uint32_t type, uint64_t offset) {
    text(name).number(static_cast<uint32_t>(dimensions.size()));
    for (const auto dimension : dimensions) number(dimension);
    return number(type).number(offset);
  }
  std::string with_data(size_t bytes) const {
    std::string result = text_;
    result.resize((result.size() + 31) / 32 * 32 + bytes);
    return result;
  }
  std::string text_ = "GGUF";
};

Builder header(uint64_t tensors, uint64_t values, uint32_t version = 3) {
  Builder builder;
  builder.number(version).number(tensors).number(values);
  return builder;
}

void expect_refused(const std::string& file, const std::string& part, ErrorCode code = ErrorCode::corrupt_file) {
  const std::string message = error_of([&] { read_all(file); }, code);
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(Gguf, LiesAboutTensorsAreNamed) {
  read_all(header(1, 0).tensor("t", {2}, 0, 0).with_data(8));
  read_all(header(1, 0, 2).tensor("t", {32, 2}, 2, 0).with_data(36));
  expect_refused(header(1, 0).tensor("t", {2}, 0, 0).with_data(4), "'t': 8 bytes at offset 0 lie outside");
  expect_refused(header(1, 0).tensor("t", {2}, 0, uint64_t{1} << 63).with_data(8), "lie outside");
  expect_refused(header(1, 0).tensor("t", {2}, 0, 8).with_data(16), "not a multiple of 32");
  expect_refused(header(2, 0).tensor("t", {9}, 0, 0).tensor("u", {2}, 0, 32).with_data(64), "overlap");
  expect_refused(header(2, 0).tensor("t", {2}, 0, 0).tensor("t", {2}, 0, 32).with_data(64), "twice");
  expect_refused(header(1, 0).tensor("t", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0).with_data(8), "overflows");
  expect_refused(header(1, 0).tensor("t", {~uint64_t{0}}, 0, 0).with_data(8), "dimension");
  expect_refused(header(1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0).with_data(8), "5 dimensions");
  expect_refused(header(1, 0).tensor("t", {33}, 2, 0).with_data(99), "no whole Q4_0 blocks");
  expect_refused(header(1, 0).tensor("t", {32}, 4, 0).with_data(99), "unknown ggml type 4", ErrorCode::unsupported);
  expect_refused(header(1, 0).tensor("t", {256}, 16, 0).with_data(66), "'t': type IQ2_XXS", ErrorCode::unsupported);
  expect_refused(header(uint64_t{1} << 60, 0).with_data(8), "only");
}

TEST(Gguf, LiesAboutValuesAreNamed) {
  const auto key = [](uint32_t type) { return header(0, 1).text("k").number(type); };
  read_all(key(9).number(uint32_t{0}).number(uint64_t{1}).with_data(1));
  expect_refused("GGML", "not a GGUF file");
  expect_refused(header(0, 0, 1).with_data(0), "version 1", ErrorCode::unsupported);
  expect_refused(header(0, 0, 0x03000000).with_data(0), "big-endian", ErrorCode::unsupported);
  expect_refused(key(13).with_data(8), "unknown value type 13");
  expect_refused(key(8).number(~uint64_t{0}).with_data(8), "a text of");
  expect_refused(key(9).number(uint32_t{99}).number(uint64_t{1}).with_data(8), "unknown value type 99");
  expect_refused(key(9).number(uint32_t{10}).number(uint64_t{1} << 61).with_data(64), "only");
  Builder deep = key(9);
  for (int i = 0; i < 8; ++i) deep.number(uint32_t{9}).number(uint64_t{1});
  expect_refused(deep.with_data(64), "nested deeper");
  expect_refused(
      header(0, 2).text("k").number(uint32_t{0}).number('a').text("k").number(uint32_t{0}).number('a').with_data(0),
      "twice");
  const auto aligned = [](uint32_t alignment) {
    return header(0, 1).text("general.alignment").number(uint32_t{4}).number(alignment);
  };
  for (const uint32_t alignment : {0u, 3u, 1u << 31})
    expect_refused(aligned(alignment).with_data(0), "general.alignment");
}

}  // namespace
}  // namespace nibble
