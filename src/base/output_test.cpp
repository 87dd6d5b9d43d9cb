// Output directories through kills, failures and, by the order of its calls, losses of power.
#include "base/output.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/folder_case.h"

namespace {

constexpr int kKilled = 9;

/// What the calls below do, in the place of the C library's.
struct FileSystem {
  bool can_exchange = true;
  int renames_until_kill = -1;  // the process ends after so many
  std::vector<std::string> calls;

  void end_if_killed() {
    if (--renames_until_kill == 0) _exit(kKilled);
  }
} file_system;

std::string name_of(int fd) {
  return std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd)).filename().string();
}

}  // namespace

extern "C" {

int fsync(int fd) {
  file_system.calls.push_back("sync " + name_of(fd));
  return static_cast<int>(syscall(SYS_fsync, fd));
}

int rename(const char* from, const char* to) noexcept {
  const auto status = static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
  file_system.calls.emplace_back("rename");
  file_system.end_if_killed();
  return status;
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  if (!file_system.can_exchange) {
    errno = EINVAL;
    return -1;
  }
  const auto status = static_cast<int>(syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
  if (status == 0) file_system.calls.emplace_back("exchange");
  if (status == 0) file_system.end_if_killed();
  return status;
}
}

namespace nibble {
namespace {

/// Everything that `folder` holds.
std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

class Output : public testing::TestWithParam<bool> {
 protected:
  Output() { file_system = {.can_exchange = GetParam(), .calls = {}}; }
  ~Output() override { file_system = {}; }

  void write(const std::string& text, OldOutput old = OldOutput::replaced) const {
    AtomicDirectory directory(target_, old);
    write_file(directory.path() / "text", text);
    directory.commit();
  }
  /// Ends the process after so many renames of a replacement.
  void write_and_die(const std::string& text, int renames) const {
    EXPECT_EXIT((file_system.renames_until_kill = renames, write(text)), testing::ExitedWithCode(kKilled), "");
  }
  std::string text() const { return read_file(target_ / "text"); }

  Scratch scratch_;
  std::filesystem::path target_ = scratch_.path / "out-1";
};

INSTANTIATE_TEST_SUITE_P(FileSystems, Output, testing::Bool(),
                         [](const auto& is) { return is.param ? "WithExchange" : "WithoutExchange"; });

TEST_P(Output, DirectoryAppearsOnlyOnCommit) {
  {
    AtomicDirectory directory(target_);
    write_file(directory.path() / "a.txt", "hello");
  }
  EXPECT_TRUE(std::filesystem::is_empty(scratch_.path));
  write("hello", OldOutput::refused);
  EXPECT_EQ(text(), "hello");
  EXPECT_THROW(AtomicDirectory{target_}, Error);
}

TEST_P(Output, WhatAppearedMeanwhileIsNotReplaced) {
  AtomicDirectory directory(target_);
  write("theirs");
  EXPECT_THROW(directory.commit(), Error);
  EXPECT_EQ(text(), "theirs");
}

TEST_P(Output, ADirectoryTakesTheOldOnesPlace) {
  write("first");
  write("second");
  EXPECT_EQ(text(), "second");
  {
    AtomicDirectory directory(target_, OldOutput::replaced);
    std::filesystem::remove_all(directory.path());
    EXPECT_THROW(directory.commit(), Error);
  }
  EXPECT_EQ(text(), "second");
  EXPECT_EQ(names_in(scratch_.path), std::vector<std::string>{"out-1"});  // nothing is left aside
  write_file(scratch_.path / "file", "");
  EXPECT_THROW(AtomicDirectory(scratch_.path / "file", OldOutput::replaced), Error);
}

TEST_P(Output, AKillWhileReplacingLosesNothing) {
  write("first");
  for (const int renames : {1, 2}) {
    if (GetParam() && renames == 2) continue;  // there is one
    write_and_die("second", renames);
    EXPECT_EQ(std::filesystem::exists(target_), GetParam() || renames == 2);
    EXPECT_GT(names_in(scratch_.path).size(), 1u);
    recover_directories(scratch_.path, "out-");
    EXPECT_EQ(text(), GetParam() || renames == 2 ? "second" : "first");
    EXPECT_EQ(names_in(scratch_.path), std::vector<std::string>{"out-1"});
  }
}

TEST_P(Output, RecoveryLeavesOthersAlone) {
  const std::vector<std::string> others{".other-1.partial-abcdef", ".out-notes", "out-2.partial-abcdef"};
  for (const std::string& name : others) std::filesystem::create_directory(scratch_.path / name);
  std::filesystem::create_directory(scratch_.path / ".out-3.partial-abcdef");
  recover_directories(scratch_.path, "out-");
  EXPECT_EQ(names_in(scratch_.path), others);
  recover_directories(scratch_.path / "nowhere", "out-");
}

TEST_P(Output, EverythingIsOnTheDiskBeforeItTakesItsPlace) {
  write("first");
  AtomicDirectory directory(target_, OldOutput::replaced);
  std::filesystem::create_directory(directory.path() / "inner");
  write_file(directory.path() / "inner/a", "a");
  write_file(directory.path() / "b", "b");
  file_system.calls.clear();
  directory.commit_synced();
  auto& calls = file_system.calls;
  const auto first_move =
      std::find_if(calls.begin(), calls.end(), [](const auto& call) { return !call.starts_with("sync"); });
  std::vector<std::string> before(calls.begin(), first_move);
  ASSERT_EQ(before.size(), 4u);
  EXPECT_TRUE(before.back().starts_with("sync .out-1.partial-"));
  EXPECT_LT(std::find(before.begin(), before.end(), "sync a"), std::find(before.begin(), before.end(), "sync inner"));
  EXPECT_NE(std::find(before.begin(), before.end(), "sync inner"), before.end());
  EXPECT_NE(std::find(before.begin(), before.end(), "sync b"), before.end());
  EXPECT_EQ(calls.back(), "sync " + scratch_.path.filename().string());
  EXPECT_THROW(sync_path(scratch_.path / "nowhere"), Error);
}

}  // namespace
}  // namespace nibble
