// Footprints of published models from their configurations, to the byte as transformers' get_memory_footprint.
#include <gtest/gtest.h>

#include <filesystem>

#include "models/summary.h"

namespace nibble::models {
namespace {

const std::filesystem::path kPublished = std::filesystem::path(NIBBLE_TEST_DATA) / "published";

/// In fp16, "8bit" or "4bit".
ModelSummary summary_of(const Json& config, const std::string& key) {
  BitsAndBytesConfig quantization;
  quantization.load_in_4bit = key == "4bit";
  quantization.load_in_8bit = key == "8bit";
  return summarize(config, "config", quantization, DType::f16);
}

TEST(Published, FootprintsAsTransformers) {
  int models = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kPublished)) {
    const Json config = read_json(entry.path());
    ++models;
    for (const std::string key : {"fp16", "8bit", "4bit"}) {
      SCOPED_TRACE(entry.path().filename().string() + " " + key);
      const ModelSummary summary = summary_of(config, key);
      EXPECT_EQ(summary.memory_footprint_bytes, config["footprint"][key].get<int64_t>());
      EXPECT_EQ(summary.num_parameters, config["footprint"]["num_parameters"].get<int64_t>());
    }
  }
  EXPECT_GE(models, 23);
}

/// The ratios that the tests of transformers 4 expect. Its models held buffers that version 5 no longer has.
TEST(Published, RatiosOfTransformers4) {
  struct Ratio {
    const char* file;
    int64_t more_buffer_bytes;
    double to_4bit, to_8bit;
  };
  for (const Ratio& ratio :
       {Ratio{"bloom-1b7.json", 0, 2.109659552692574, 1.54002505},
        Ratio{"gpt2-xl.json", 48 * (1024 * 1024 + 2), 3.3191854854152187, 1.8720077507258357},  // causal masks
        Ratio{"tinyllama-1.1b-chat-v1.0.json", (23 - 2) * 32 * 4, 2.9461410686392764, 1.7869331026479096}}) {
    const Json config = read_json(kPublished / ratio.file);
    const auto bytes = [&](const char* key) {
      return static_cast<double>(summary_of(config, key).memory_footprint_bytes + ratio.more_buffer_bytes);
    };
    EXPECT_NEAR(bytes("fp16") / bytes("4bit"), ratio.to_4bit, 1e-9) << ratio.file;
    EXPECT_NEAR(bytes("fp16") / bytes("8bit"), ratio.to_8bit, 1e-7) << ratio.file;
  }
}

}  // namespace
}  // namespace nibble::models
