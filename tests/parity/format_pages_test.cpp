// The worked examples of docs/formats are true: each fenced `example` is read from its page and computed here.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/checked.h"
#include "base/half.h"
#include "base/output.h"
#include "checkpoint/quant_state.h"
#include "checkpoint/safetensors_writer.h"
#include "format_page.h"
#include "kernels/reference/table.h"
#include "quant/double_quant.h"

namespace nibble::parity {
namespace {

const kernels::Kernels& reference() { return kernels::reference::table(); }

struct Packed {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

Packed quantize_4bit(const std::vector<float>& x, int64_t block, const quant::CodeBook4Bit& book) {
  const auto count = static_cast<int64_t>(x.size());
  Packed result{std::vector<uint8_t>(static_cast<size_t>(quant::packed_size_bytes(count))),
                std::vector<float>(static_cast<size_t>(quant::block_count(count, block)))};
  reference().quantize_4bit({}, {x.data(), DType::f32, count, block, &book, result.codes.data(), result.absmax.data()});
  return result;
}

void check_4bit(Example example) {
  const quant::CodeBook4Bit& book = *quant::find_format(example["format"])->code_book_4bit;
  const int64_t block = std::stoll(example["block"]);
  const std::vector<float> x = numbers(example["values"]);
  const Packed q = quantize_4bit(x, block, book);
  std::vector<float> decoded(x.size());
  reference().dequantize_4bit({}, {q.codes.data(),
                                   {.values = q.absmax.data()},
                                   static_cast<int64_t>(x.size()),
                                   block,
                                   book.values.data(),
                                   decoded.data(),
                                   DType::f32});
  EXPECT_EQ(bits(q.absmax), example["absmax"]);
  EXPECT_EQ(hex(q.codes.data(), q.codes.size()), example["packed"]);
  EXPECT_EQ(bits(decoded), example["decoded"]);
}

void check_8bit(Example example) {
  const float* book = quant::find_format(example["format"])->code_book_8bit;
  const int64_t block = std::stoll(example["block"]);
  const std::vector<float> x = numbers(example["values"]);
  const auto count = static_cast<int64_t>(x.size());
  std::vector<uint8_t> codes(x.size());
  std::vector<float> absmax(static_cast<size_t>(quant::block_count(count, block))), decoded(x.size());
  reference().quantize_8bit({}, {x.data(), DType::f32, count, block, book, codes.data(), absmax.data()});
  reference().dequantize_8bit({}, {codes.data(), absmax.data(), count, block, book, decoded.data(), DType::f32});
  EXPECT_EQ(bits(absmax), example["absmax"]);
  EXPECT_EQ(decimal(codes), example["codes"]);
  EXPECT_EQ(bits(decoded), example["decoded"]);
}

void check_double_quant(Example example) {
  const std::vector<float> absmax = numbers(example["values"]);
  const quant::NestedAbsmax nested = quant::compress_absmax(absmax);
  std::vector<float> decoded(absmax.size());
  quant::expand_absmax(nested.codes, nested.absmax, quant::kDynamicSigned.data(), nested.offset, decoded);
  EXPECT_EQ(bits({nested.offset}), example["offset"]);
  EXPECT_EQ(bits(nested.absmax), example["nested_absmax"]);
  EXPECT_EQ(decimal(nested.codes), example["codes"]);
  EXPECT_EQ(bits(decoded), example["decoded"]);
}

void check_int8(Example example) {
  const std::vector<float> x = numbers(example["values"]);
  const int64_t cols = std::stoll(example["cols"]);
  const int64_t rows = static_cast<int64_t>(x.size()) / cols;
  std::vector<int8_t> q(x.size());
  std::vector<float> absmax(static_cast<size_t>(rows)), decoded(x.size());
  std::vector<uint8_t> is_outlier(static_cast<size_t>(cols));
  reference().quantize_int8_rows({}, {x.data(), DType::f32, rows, cols, std::stof(example["threshold"]), q.data(),
                                      absmax.data(), is_outlier.data()});
  reference().dequantize_int8_rows({}, {q.data(), absmax.data(), rows, cols, decoded.data(), DType::f32});
  std::vector<size_t> outliers;
  for (size_t c = 0; c < is_outlier.size(); ++c)
    if (is_outlier[c]) outliers.push_back(c);
  EXPECT_EQ(bits(absmax), example["absmax"]);
  EXPECT_EQ(decimal(q), example["codes"]);
  EXPECT_EQ(decimal(outliers), example["outlier_columns"]);
  EXPECT_EQ(bits(decoded), example["decoded"]);
}

void check(const std::string& page, size_t count) {
  const std::vector<Example> examples = examples_of(page);
  EXPECT_EQ(examples.size(), count) << page;
  for (const Example& example : examples) {
    SCOPED_TRACE(page + ": " + example.at("values"));
    const quant::Format* format = quant::find_format(example.at("format"));
    if (!format) {
      ASSERT_EQ(example.at("format"), "double_quant");
      check_double_quant(example);
    } else if (format->family == quant::Family::code_book_4bit) {
      check_4bit(example);
    } else if (format->family == quant::Family::blockwise_8bit) {
      check_8bit(example);
    } else {
      check_int8(example);
    }
  }
}

TEST(FormatPages, Nf4) { check("nf4.md", 5); }
TEST(FormatPages, Fp4) { check("fp4.md", 5); }
TEST(FormatPages, DoubleQuant) { check("double_quant.md", 2); }
TEST(FormatPages, Dynamic8) { check("dynamic8.md", 2); }
TEST(FormatPages, LlmInt8) { check("llm_int8.md", 2); }

/// The weight of checkpoint.md, and the tensors that a file holds for it.
class CheckpointPage : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<Example> examples = examples_of("checkpoint.md");
    ASSERT_EQ(examples.size(), 2u);
    state_ = examples[0];
    file_ = examples[1];
    std::vector<float> x = numbers(state_["values"]);
    for (float& value : x) value = to_float(to_bf16(value));
    weight_ = quantize_4bit(x, std::stoll(state_["blocksize"]), quant::kNf4);
    nested_ = quant::compress_absmax(weight_.absmax);
    Stored4Bit stored;
    stored.quant_type = state_["quant_type"];
    stored.blocksize = std::stoll(state_["blocksize"]);
    stored.dtype = dtype_from_name(state_["dtype"]);
    for (const float dimension : numbers(state_["shape"])) stored.shape.push_back(static_cast<int64_t>(dimension));
    stored.is_nested = true;
    stored.nested_offset = nested_.offset;
    json_ = quant_state_json(stored);
  }
  Example state_, file_;
  Packed weight_;
  quant::NestedAbsmax nested_;
  std::string json_;
};

TEST_F(CheckpointPage, StatisticsAreTheseBytes) {
  EXPECT_EQ(hex(weight_.codes.data(), weight_.codes.size()), state_["packed"]);
  EXPECT_EQ(hex(nested_.codes.data(), nested_.codes.size()), state_["absmax"]);
  EXPECT_EQ(hex(nested_.absmax.data(), nested_.absmax.size() * sizeof(float)), state_["nested_absmax"]);
  EXPECT_EQ(nested_.offset, std::stof(state_["nested_offset"]));
  EXPECT_EQ(json_, state_["json"]);
  EXPECT_EQ(hex(quant::kNf4.quant_map.data(), sizeof quant::kNf4.quant_map), state_["quant_map"]);
}

TEST_F(CheckpointPage, TheFileIsTheseBytesAndReadsBack) {
  const std::string name = file_["name"];
  struct Part {
    PlannedTensor plan;
    const void* data;
  };
  const auto length = static_cast<int64_t>(json_.size());
  const std::vector<Part> parts{{{name, DType::u8, {5, 1}}, weight_.codes.data()},
                                {{name + ".absmax", DType::u8, {1}}, nested_.codes.data()},
                                {{name + ".nested_absmax", DType::f32, {1}}, nested_.absmax.data()},
                                {{name + ".nested_quant_map", DType::f32, {256}}, quant::kDynamicSigned.data()},
                                {{name + ".quant_map", DType::f32, {16}}, quant::kNf4.quant_map.data()},
                                {{name + ".quant_state.bitsandbytes__nf4", DType::u8, {length}}, json_.data()}};
  std::vector<PlannedTensor> plan;
  for (const Part& part : parts) plan.push_back(part.plan);
  const std::filesystem::path directory = std::filesystem::path(testing::TempDir()) / "nibble_checkpoint_page";
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  SafetensorsWriter writer(directory, plan, int64_t{1} << 30);
  for (const Part& part : parts) {
    const auto size = static_cast<size_t>(checked_count(part.plan.shape, name) * size_of(part.plan.dtype));
    writer.write(part.plan.name, {static_cast<const std::byte*>(part.data), size});
  }
  writer.finish();

  const std::string bytes = read_file(directory / "model.safetensors");
  uint64_t header_length = 0;
  std::memcpy(&header_length, bytes.data(), sizeof header_length);
  EXPECT_EQ(hex(bytes.data(), 8), file_["header_length"]);
  std::string header = bytes.substr(8, header_length);
  header.resize(header.find_last_not_of(' ') + 1);
  EXPECT_EQ(header, file_["header"]);

  const auto stored = find_4bit(*Checkpoint::open(directory), name);
  ASSERT_TRUE(stored.has_value());
  EXPECT_EQ(stored->quant_type, "nf4");
  EXPECT_EQ(stored->nested_offset, nested_.offset);
  EXPECT_EQ(hex(stored->packed.data(), 5), state_["packed"]);
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace nibble::parity
