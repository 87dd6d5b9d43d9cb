// What a decode step reads, from the config of a tiny model; what info lists.
#include <gtest/gtest.h>

#include "kernels/kernels.h"
#include "nibble/model.h"
#include "nibble/system.h"

namespace nibble {
namespace {

TEST(Inspect, DecodeBytesLeaveOutWhatIsNotRead) {
  for (const auto& entry : std::filesystem::directory_iterator(NIBBLE_TEST_DATA "/models")) {
    if (!std::filesystem::exists(entry.path() / "config.json")) continue;
    SCOPED_TRACE(entry.path().filename().string());
    const ModelSummary summary = inspect(entry.path());
    int64_t untied_embedding = 0, buffers = 0;
    bool has_own_head = false, has_encoder = false;
    for (const auto& module : summary.modules) {
      if (module.class_name.ends_with("Embedding")) untied_embedding += module.size_bytes;
      if (module.parameters == 0) buffers += module.size_bytes;
      if (module.name == "lm_head") has_own_head = module.size_bytes > 0;
      if (module.name == "encoder") has_encoder = true;
    }
    const int64_t all = summary.memory_footprint_bytes + summary.statistics_bytes;
    EXPECT_LE(summary.decode_bytes, has_own_head ? all - untied_embedding : all);
    if (has_encoder)  // it runs once, before the first step
      EXPECT_LT(summary.decode_bytes, all - 4096);
    else
      EXPECT_GT(summary.decode_bytes, all - untied_embedding - buffers - 4096);  // masks, angles
  }
}

TEST(Inspect, QuantizedWeightsAreHalfAByte) {
  const std::filesystem::path model = NIBBLE_TEST_DATA "/models/llama";
  const ModelSummary dense = inspect(model, {}, DType::f16);
  const ModelSummary quantized = inspect(model, {.load_in_4bit = true}, DType::f16);
  EXPECT_EQ(dense.num_parameters, quantized.num_parameters);
  int64_t saved = 0;
  for (const auto& module : quantized.modules)
    if (module.is_quantized) saved += module.parameters * 2 - module.parameters / 2;
  EXPECT_EQ(dense.memory_footprint_bytes - quantized.memory_footprint_bytes, saved);
  EXPECT_NE(quantized.tree.find("Linear4bit(in_features="), std::string::npos);
}

TEST(Inspect, InfoListsEveryKernelEntry) {
  const SystemInfo info = system_info();
  EXPECT_EQ(info.kernels.size(), (sizeof(kernels::Kernels) - sizeof(kernels::Kernels::name)) / sizeof(void*));
}

}  // namespace
}  // namespace nibble
