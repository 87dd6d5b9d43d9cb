// Batches of prompts through the public interface.
#include <gtest/gtest.h>

#include <filesystem>

#include "nibble/model.h"

namespace nibble {
namespace {

const std::filesystem::path kModels = std::filesystem::path(NIBBLE_TEST_DATA) / "models";

TEST(GenerateApi, ALongPromptLeavesTheOthersTheirTokens) {
  LoadOptions options;
  options.device_map = "cpu";
  options.dtype = DType::f32;
  AutoModelForCausalLM model = AutoModelForCausalLM::from_pretrained(kModels / "llama", options);
  const int64_t context = model.max_position_embeddings();
  const std::vector<int32_t> brief{5, 17, 100}, full(static_cast<size_t>(context - 2), 9);
  GenerationConfig config{.max_new_tokens = 12, .eos_token_id = {-1}};
  for (const int64_t beams : {1, 3}) {
    config.num_beams = beams;
    const GenerationOutput both = model.generate({brief, full}, config);
    EXPECT_EQ(both[0], model.generate(brief, config)[0]);
    EXPECT_EQ(both[0].size(), brief.size() + 12);
    EXPECT_EQ(both[1].size(), static_cast<size_t>(context)) << "the end of the context";
  }
}

}  // namespace
}  // namespace nibble
