// Quantized weights in files that transformers + bitsandbytes saved, and in files that lie.
#include "checkpoint/quant_state.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/json.h"
#include "checkpoint/checkpoint_samples_test.h"
#include "quant/format.h"

namespace nibble {
namespace {

using samples::error_of;
using samples::path_of;

constexpr const char* kDown = "model.layers.0.mlp.down_proj.weight";

// Decodes with the code book stored in the file, in plain loops.
std::vector<float> decode(const Stored4Bit& state, const Tensor& quant_map) {
  std::vector<float> values;
  for (int64_t i = 0; i < state.shape[0] * state.shape[1]; ++i) {
    const uint8_t byte = state.packed.as<uint8_t>()[i / 2];
    const int64_t block = i / state.blocksize;
    const float absmax = state.is_nested ? state.nested_quant_map.as<float>()[state.absmax.as<uint8_t>()[block]] *
                                                   state.nested_absmax.as<float>()[block / quant::kNestedBlock] +
                                               state.nested_offset
                                         : state.absmax.as<float>()[block];
    values.push_back(quant_map.as<float>()[i % 2 ? byte & 15 : byte >> 4] * absmax);
  }
  return values;
}

void expect_decodes(const char* name) {
  const auto checkpoint = Checkpoint::open(path_of(name));
  const auto golden = Checkpoint::open(path_of(name) / "decoded.golden");
  const auto state = find_4bit(*checkpoint, kDown);
  ASSERT_TRUE(state);
  const auto values = decode(*state, checkpoint->get(std::string(kDown) + ".quant_map"));
  const Tensor expected = golden->get("down_proj");
  ASSERT_EQ(static_cast<int64_t>(values.size()), expected.count());
  for (size_t i = 0; i < values.size(); ++i)  // theirs is rounded to bf16
    ASSERT_NEAR(values[i], expected.as<float>()[i], std::abs(values[i]) * 0x1p-8f) << i;
}

TEST(QuantState, ReadsWhatTheLibraryWrote) {
  const auto checkpoint = Checkpoint::open(path_of("nf4_nested"));
  const auto state = find_4bit(*checkpoint, kDown);
  ASSERT_TRUE(state);
  EXPECT_EQ(state->quant_type, "nf4");
  EXPECT_EQ(state->shape, (Shape{64, 128}));
  EXPECT_EQ(state->dtype, DType::bf16);
  EXPECT_EQ(state->blocksize, 64);
  EXPECT_TRUE(state->is_nested);
  EXPECT_EQ(state->packed.count(), 64 * 128 / 2);
  EXPECT_FALSE(find_4bit(*checkpoint, "model.norm.weight"));
  EXPECT_FALSE(find_int8(*checkpoint, "model.norm.weight"));
  expect_decodes("nf4_nested");
}

TEST(QuantState, ReadsAnyStorageType) {
  const auto checkpoint = Checkpoint::open(path_of("fp4_bf16_storage"));
  EXPECT_EQ(checkpoint->get(kDown).dtype(), DType::bf16);
  const auto state = find_4bit(*checkpoint, kDown);
  ASSERT_TRUE(state);
  EXPECT_FALSE(state->is_nested);
  EXPECT_EQ(state->packed.dtype(), DType::u8);
  EXPECT_EQ(state->packed.count(), 64 * 128 / 2);
  expect_decodes("fp4_bf16_storage");
}

TEST(QuantState, JsonIsByteEqual) {
  int compared = 0;
  for (const char* directory : {"nf4_nested", "fp4_bf16_storage"}) {
    const auto checkpoint = Checkpoint::open(path_of(directory));
    for (const auto& info : checkpoint->tensors()) {
      const size_t at = info.name.find(".quant_state.");
      if (at == std::string::npos) continue;
      const Tensor text = checkpoint->get(info.name);
      const auto state = find_4bit(*checkpoint, info.name.substr(0, at));
      EXPECT_EQ(quant_state_json(*state), std::string(text.as<char>(), static_cast<size_t>(text.count())));
      ++compared;
    }
  }
  EXPECT_EQ(compared, 21);
}

TEST(QuantState, FloatsAsPythonWritesThem) {
  std::ifstream lines(path_of("python_floats.json"));
  int compared = 0;
  for (std::string line; std::getline(lines, line); ++compared) {
    Stored4Bit state;
    state.is_nested = true;
    state.quant_type = "nf4";
    state.shape = {1};
    state.nested_offset = static_cast<float>(std::stod(line));
    const std::string json = quant_state_json(state);
    EXPECT_TRUE(json.ends_with("\"nested_offset\": " + line + "}")) << json << " " << line;
  }
  EXPECT_EQ(compared, 14);
}

TEST(QuantState, ReadsInt8) {
  const auto checkpoint = Checkpoint::open(path_of("int8"));
  const auto stored = find_int8(*checkpoint, kDown);
  ASSERT_TRUE(stored);
  EXPECT_EQ(stored->values.shape(), (Shape{64, 96}));
  EXPECT_EQ(stored->absmax.shape(), (Shape{64}));
  for (int64_t row = 0; row < 64; ++row) {  // every row has its absmax as +-127
    int largest = 0;
    for (int64_t i = 0; i < 96; ++i)
      largest = std::max(largest, std::abs(int{stored->values.as<int8_t>()[row * 96 + i]}));
    EXPECT_EQ(largest, 127);
  }
  EXPECT_FALSE(find_4bit(*checkpoint, kDown));
}

struct Piece {
  std::string name, dtype, shape, data;
};

// A safetensors file of these tensors.
std::string file_of(const std::vector<Piece>& pieces) {
  std::string header = "{", data;
  for (const auto& piece : pieces) {
    header +=
        fmt::format(R"({}{}:{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", header.size() > 1 ? "," : "",
                    Json(piece.name).dump(), piece.dtype, piece.shape, data.size(), data.size() + piece.data.size());
    data += piece.data;
  }
  return samples::safetensors(header + "}", 0) + data;
}

std::vector<Piece> nested_weight(const std::string& json) {
  return {{"w", "U8", "[64,1]", std::string(64, 'x')},
          {"w.absmax", "U8", "[2]", "ab"},
          {"w.nested_absmax", "F32", "[1]", "abcd"},
          {"w.nested_quant_map", "F32", "[256]", std::string(1024, '1')},
          {"w.quant_state.bitsandbytes__nf4", "U8", fmt::format("[{}]", json.size()), json}};
}

std::optional<Stored4Bit> find_in(const std::vector<Piece>& pieces) {
  const samples::ExactBytes bytes(file_of(pieces));
  return find_4bit(*Checkpoint::parse(bytes.span(), "sample"), "w");
}

constexpr const char* kState =
    R"({"nested_offset": 1, "shape": [2, 64], "quant_type": "nf4", "blocksize": 64, "nested_dtype": "float32",)"
    R"( "nested_blocksize": 256, "dtype": "float16"})";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

TEST(QuantState, AnyKeyOrder) {
  const auto state = find_in(nested_weight(kState));
  ASSERT_TRUE(state);
  EXPECT_EQ(state->nested_offset, 1.0f);
  EXPECT_EQ(state->dtype, DType::f16);
}

TEST(QuantState, LiesInTheJson) {
  const std::pair<const char*, const char*> changes[] = {{"\"nf4\"", "\"fp4\""},
                                                         {"\"blocksize\": 64", "\"blocksize\": 48"},
                                                         {"\"blocksize\": 64", "\"blocksize\": 0"},
                                                         {"\"blocksize\": 64", "\"blocksize\": 128"},
                                                         {"[2, 64]", "[2, 66]"},
                                                         {"[2, 64]", "[]"},
                                                         {"[2, 64]", "[-2, -64]"},
                                                         {"[2, 64]", "\"2\""},
                                                         {"[2, 64]", "[4611686018427387904, 4]"},
                                                         {"float16", "float17"},
                                                         {"\"shape\"", "\"shaqe\""},
                                                         {"{", "["}};
  for (const auto& [from, to] : changes)
    error_of([&, from = from, to = to] { find_in(nested_weight(replaced(kState, from, to))); },
             ErrorCode::corrupt_file);
  error_of([&] { find_in(nested_weight(replaced(kState, "256", "128"))); }, ErrorCode::unsupported);
}

TEST(QuantState, WrongOrMissingStatisticsAreNamed) {
  for (size_t i = 0; i < 5; ++i) {
    auto pieces = nested_weight(kState);
    const std::string name = pieces[i].name;
    pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_NE(error_of([&] { find_in(pieces); }, ErrorCode::corrupt_file).find("'" + name), std::string::npos) << name;
    if (i == 4) continue;
    pieces = nested_weight(kState);
    pieces[i].dtype = "U8";
    pieces[i].shape = "[1]";
    pieces[i].data = "z";
    EXPECT_NE(error_of([&] { find_in(pieces); }, ErrorCode::corrupt_file).find("'" + name + "'"), std::string::npos)
        << name;
  }
}

TEST(QuantState, LiesAboutInt8) {
  const auto find = [](const std::vector<Piece>& pieces) {
    const samples::ExactBytes bytes(file_of(pieces));
    return find_int8(*Checkpoint::parse(bytes.span(), "sample"), "m.weight");
  };
  const Piece weight{"m.weight", "I8", "[2,3]", "abcdef"}, scb{"m.SCB", "F32", "[2]", "abcdefgh"};
  EXPECT_TRUE(find({weight, scb, {"m.weight_format", "U8", "[]", std::string(1, '\0')}}));
  error_of([&] { find({weight, scb, {"m.weight_format", "U8", "[]", "\2"}}); }, ErrorCode::unsupported);
  error_of([&] { find({weight}); }, ErrorCode::corrupt_file);
  error_of([&] { find({weight, {"m.SCB", "F32", "[1]", "abcd"}}); }, ErrorCode::corrupt_file);
  error_of([&] { find({{"m.weight", "U8", "[2,3]", "abcdef"}, scb}); }, ErrorCode::corrupt_file);
}

}  // namespace
}  // namespace nibble
