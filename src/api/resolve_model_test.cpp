// Hub ids in a local cache.
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/output.h"
#include "nibble/model.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

TEST(ResolveModel, FindsSnapshotsByIdAndReportsTheCache) {
  const fs::path cache = fs::path(testing::TempDir()) / "nibble_hub";
  fs::remove_all(cache);
  const fs::path root = cache / "models--org--name";
  fs::create_directories(root / "snapshots" / "abc");
  fs::create_directories(root / "refs");
  write_file(root / "refs" / "main", "abc\n");
  setenv("HF_HUB_CACHE", cache.c_str(), 1);
  EXPECT_EQ(resolve_model("org/name"), root / "snapshots" / "abc");
  EXPECT_EQ(resolve_model(cache.string()), cache);
  for (const char* missing : {"org/other", "../name", "/no/such/dir", "a/b/c", ""}) {
    try {
      resolve_model(missing);
      ADD_FAILURE() << missing;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::not_found);
    }
  }
  unsetenv("HF_HUB_CACHE");
}

}  // namespace
}  // namespace nibble
