// Reading and writing safetensors: the library's own files byte by byte, and files that lie.
#include <gtest/gtest.h>

#include <fstream>

#include "base/json.h"
#include "checkpoint/checkpoint_samples_test.h"
#include "checkpoint/safetensors_header.h"
#include "checkpoint/safetensors_writer.h"

namespace nibble {
namespace {

using samples::error_of;
using samples::ExactBytes;
using samples::path_of;
namespace fs = std::filesystem;

// Parses and reads every byte of every tensor.
void read_all(const std::string& file) {
  const ExactBytes bytes(file);
  const auto checkpoint = Checkpoint::parse(bytes.span(), "sample");
  unsigned sum = 0;
  for (const auto& info : checkpoint->tensors()) {
    if (!info.is_supported) continue;
    for (const std::byte byte : checkpoint->get(info.name).bytes()) sum += static_cast<unsigned>(byte);
  }
  EXPECT_GE(sum, 0u);
}

TEST(Safetensors, ReadsEveryType) {
  const auto checkpoint = Checkpoint::open(path_of("types.safetensors"));
  EXPECT_EQ(checkpoint->tensors().size(), 12u);
  const Tensor f32 = checkpoint->get("b_f32");
  EXPECT_EQ(f32.shape(), (Shape{5}));
  EXPECT_EQ(f32.as<float>()[4], 4.0f / 3.0f);
  EXPECT_EQ(checkpoint->get("z_f64").as<double>()[2], 2.0);
  EXPECT_EQ(checkpoint->get("i64").as<int64_t>()[0], -5);
  EXPECT_EQ(checkpoint->get("i64").shape(), Shape{});
  EXPECT_EQ(checkpoint->get("a_bf16").to(DType::f32).as<float>()[6], 6.0f);
  EXPECT_EQ(checkpoint->get("c_f16").shape(), (Shape{2, 3}));
  EXPECT_EQ(checkpoint->get("u8").as<uint8_t>()[80], 80);
  EXPECT_EQ(checkpoint->get("flag").dtype(), DType::boolean);
  EXPECT_EQ(checkpoint->get("empty").count(), 0);
  EXPECT_TRUE(checkpoint->find("quote\"and\\ünïcode"));
  EXPECT_EQ(checkpoint->size_bytes(), 3 * 8 + 5 * 4 + 7 * 2 + 6 * 2 + 8 + 2 * 4 + 3 * 2 + 3 + 81 + 3 + 4);
  EXPECT_NE(error_of([&] { checkpoint->get("nowhere"); }, ErrorCode::not_found).find("nowhere"), std::string::npos);
}

TEST(Safetensors, UnsupportedTypeFailsOnlyWhenAskedFor) {
  const auto checkpoint = Checkpoint::open(path_of("float8.safetensors"));
  EXPECT_EQ(checkpoint->get("f32").as<float>()[1], 1.0f);
  EXPECT_FALSE(checkpoint->find("f8")->is_supported);
  EXPECT_NE(error_of([&] { checkpoint->get("f8"); }, ErrorCode::unsupported).find("F8_E4M3"), std::string::npos);
}

TEST(Safetensors, MisalignedDataIsCopied) {
  const std::string file = samples::safetensors(
      R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
      9);
  const ExactBytes bytes(file);
  const Tensor tensor = Checkpoint::parse(bytes.span(), "sample")->get("f");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data()) % 4, 0u);
  EXPECT_EQ(tensor.as<uint32_t>()[1], 0x01010101u);
}

TEST(Safetensors, WriterMatchesTheLibraryByteByByte) {
  const auto source = Checkpoint::open(path_of("types.safetensors"));
  const auto directory = samples::make_directory("writer_types");
  std::vector<PlannedTensor> plan;
  for (const auto& info : source->tensors()) plan.insert(plan.begin(), {info.name, info.dtype, info.shape});
  SafetensorsWriter writer(directory, plan, int64_t{1} << 30);
  for (const auto& tensor : plan) writer.write(tensor.name, source->get(tensor.name).bytes());
  writer.finish();
  const std::string written = read_file(directory / "model.safetensors");
  EXPECT_EQ(written, read_file(path_of("types.safetensors")));
  EXPECT_EQ(static_cast<size_t>(writer.bytes_written()), written.size());
}

TEST(Safetensors, ShardsRoundTrip) {
  const auto source = Checkpoint::open(path_of("sharded"));
  EXPECT_EQ(source->tensors().size(), 12u);
  const auto directory = samples::make_directory("writer_shards");
  std::vector<PlannedTensor> plan;
  for (const auto& info : source->tensors()) plan.push_back({info.name, info.dtype, info.shape});
  SafetensorsWriter writer(directory, plan, 10'000);
  for (const auto& tensor : plan) writer.write(tensor.name, source->get(tensor.name).bytes());
  writer.finish();
  const auto copy = Checkpoint::open(directory);
  ASSERT_EQ(copy->tensors().size(), plan.size());
  for (const auto& tensor : plan) {
    const auto expected = source->get(tensor.name).bytes(), found = copy->get(tensor.name).bytes();
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), found.begin(), found.end())) << tensor.name;
  }
  const Json theirs = read_json(path_of("sharded") / "model.safetensors.index.json");
  const Json ours = read_json(directory / "model.safetensors.index.json");
  EXPECT_EQ(ours["metadata"]["total_size"], theirs["metadata"]["total_size"]);
  EXPECT_EQ(ours["weight_map"].size(), theirs["weight_map"].size());
  EXPECT_TRUE(fs::exists(directory / ours["weight_map"]["lm_head.weight"].get<std::string>()));
}

TEST(Safetensors, WriterRefusesWrongOrderSizeAndOmission) {
  const auto directory = samples::make_directory("writer_order");
  SafetensorsWriter writer(directory, {{"a", DType::u8, {2}}, {"b", DType::u8, {1}}}, 100);
  const std::byte bytes[2]{};
  error_of([&] { writer.write("b", std::span(bytes, 1)); }, ErrorCode::invalid_argument);
  error_of([&] { writer.write("a", std::span(bytes, 1)); }, ErrorCode::invalid_argument);
  writer.write("a", bytes);
  error_of([&] { writer.finish(); }, ErrorCode::invalid_argument);
  error_of(
      [&] {
        SafetensorsWriter("x", {{"a", DType::u8, {2}}, {"a", DType::u8, {1}}}, 100);
      },
      ErrorCode::invalid_argument);
  SafetensorsWriter nowhere(directory / "missing", {{"a", DType::u8, {1}}}, 100);
  error_of([&] { nowhere.write("a", std::span(bytes, 1)); }, ErrorCode::io);
}

struct Lie {
  const char* header;
  size_t data_bytes;
  const char* message;  // a part of what the error says
};

TEST(Safetensors, LiesAreNamed) {
  const Lie lies[] = {
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4, "lie outside"},
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "lie outside"},
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "expected 8 for F32 [2]"},
      {R"({"w":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", 8, "unknown dtype 'F33'"},
      {R"({"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "-2"},
      {R"({"w":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8, "2.0"},
      {R"({"w":{"dtype":"F32","shape":[9223372036854775807,2],"data_offsets":[0,8]}})", 8, "overflows"},
      {R"({"w":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})", 8, "18446744073709551615"},
      {R"({"w":{"dtype":"F32","shape":[2]}})", 8, "expected dtype, shape"},
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", 8, "two data_offsets"},
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}})", 8, "key 'more'"},
      {R"({"w":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8, "an array"},
      {R"({"w":7})", 8, "the number 7"},
      {R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "twice"},
      {R"({"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "overlap"},
      {R"({"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
       5, "gap"},
      {R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 3, "end at byte"},
      {R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]})", 2, "broken JSON"},
      {R"([])", 0, "does not start"},
      {"", 0, "does not start"},
      {"{}x", 0, "broken JSON"},
  };
  for (const auto& lie : lies) {
    const std::string message =
        error_of([&] { read_all(samples::safetensors(lie.header, lie.data_bytes)); }, ErrorCode::corrupt_file);
    EXPECT_NE(message.find(lie.message), std::string::npos) << lie.header << "\n" << message;
    EXPECT_NE(message.find("sample"), std::string::npos);
  }
  std::string huge = samples::safetensors("{}", 0);
  huge[4] = 1;
  EXPECT_NE(error_of([&] { read_all(huge); }, ErrorCode::corrupt_file).find("at most"), std::string::npos);
}

TEST(Safetensors, TruncatedAnywhereIsAnError) {
  const std::string whole = read_file(path_of("types.safetensors"));
  for (size_t size = 0; size < whole.size(); ++size) EXPECT_THROW(read_all(whole.substr(0, size)), Error) << size;
}

TEST(Safetensors, AnyChangedByteParsesOrIsAnError) {
  const std::string whole = read_file(path_of("types.safetensors"));
  for (size_t i = 0; i < whole.size(); ++i)
    for (const int flip : {0x01, 0x80, 0xff, 0x20}) {
      std::string changed = whole;
      changed[i] = static_cast<char>(changed[i] ^ flip);
      try {
        read_all(changed);
      } catch (const Error&) {
      }
    }
}

TEST(Safetensors, DirectoryErrorsNameTheFile) {
  const auto directory = samples::make_directory("directories");
  EXPECT_NE(error_of([&] { Checkpoint::open(directory / "none"); }, ErrorCode::not_found).find("none"),
            std::string::npos);
  error_of([&] { Checkpoint::open(directory); }, ErrorCode::not_found);
  const auto index = directory / "model.safetensors.index.json";
  for (const char* text :
       {"{", "[]", R"({"weight_map": {}})", R"({"weight_map": {"a": 1}})", R"({"weight_map": {"a": "../b"}})"}) {
    write_file(index, text);
    EXPECT_NE(error_of([&] { Checkpoint::open(directory); }, ErrorCode::corrupt_file).find("index.json"),
              std::string::npos)
        << text;
  }
  write_file(index, R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  const std::string one = samples::safetensors(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  write_file(directory / "one.safetensors", one);
  EXPECT_NE(error_of([&] { Checkpoint::open(directory); }, ErrorCode::not_found).find("two.safetensors"),
            std::string::npos);
  write_file(directory / "two.safetensors", one);
  EXPECT_NE(error_of([&] { Checkpoint::open(directory); }, ErrorCode::corrupt_file).find("in two files"),
            std::string::npos);
  write_file(directory / "two.safetensors", samples::safetensors("{}", 0));
  EXPECT_NE(error_of([&] { Checkpoint::open(directory); }, ErrorCode::corrupt_file).find("'b'"), std::string::npos);
  fs::remove(index);
  error_of([&] { Checkpoint::open(directory); }, ErrorCode::not_found);  // two files and nothing to order them
  fs::remove(directory / "two.safetensors");
  EXPECT_EQ(Checkpoint::open(directory)->tensors().size(), 1u);
}

}  // namespace
}  // namespace nibble
