// POSIX files behind AtomicDirectory and OutputFile.
#include "base/output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"

namespace nibble {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kPartial = ".partial-", kAside = ".old";

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

}  // namespace

AtomicDirectory::AtomicDirectory(fs::path target, OldOutput old) : target_(std::move(target)), old_(old) {
  if (!target_.has_filename()) target_ = target_.parent_path();  // "out/" means "out"
  require(!target_.empty(), "output directory: the name is empty");
  std::error_code error;
  const bool is_free = !fs::exists(target_, error) || (fs::is_directory(target_, error) &&
                                                       (old == OldOutput::replaced || fs::is_empty(target_, error)));
  if (!is_free)
    fail(ErrorCode::invalid_argument,
         "output directory {}: already exists and is not empty; choose another or remove it", target_.string());
  const fs::path parent = parent_of(target_);
  fs::create_directories(parent, error);
  if (error)
    fail(ErrorCode::io, "output directory {}: cannot create {}: {}", target_.string(), parent.string(),
         error.message());
  std::string pattern = (parent / ("." + target_.filename().string() + std::string(kPartial) + "XXXXXX")).string();
  if (!mkdtemp(pattern.data()))
    fail(ErrorCode::io, "output directory {}: cannot write in {}: {}", target_.string(), parent.string(),
         std::strerror(errno));
  staging_ = pattern;
  const mode_t mask = umask(0);
  umask(mask);
  chmod(staging_.c_str(), 0777 & ~mask);
}

AtomicDirectory::~AtomicDirectory() {
  std::error_code ignored;
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
}

void AtomicDirectory::commit() {
  // In one step where the file system can; elsewhere recover_directories mends what a kill in between leaves.
  if (old_ == OldOutput::refused ||
      renameat2(AT_FDCWD, staging_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0)
    rename_into_place();
  std::error_code ignored;
  fs::remove_all(staging_, ignored);
  staging_.clear();
}

/// What was replaced, if anything, is then what staging_ names.
void AtomicDirectory::rename_into_place() {
  const fs::path aside = staging_.string() + std::string(kAside);
  std::error_code ignored;
  const bool has_old = old_ == OldOutput::replaced && fs::exists(target_, ignored);
  const bool is_free = !has_old || rename(target_.c_str(), aside.c_str()) == 0;
  if (!is_free || rename(staging_.c_str(), target_.c_str()) != 0) {
    const int reason = errno;
    if (has_old && is_free) fs::rename(aside, target_, ignored);
    fail(ErrorCode::io, "output directory {}: cannot rename into place: {}", target_.string(), std::strerror(reason));
  }
  if (has_old) staging_ = aside;
}

void AtomicDirectory::commit_synced() {
  sync_tree(staging_);
  commit();
  sync_path(parent_of(target_));
}

void recover_directories(const fs::path& parent, std::string_view prefix) {
  std::error_code ignored;
  std::vector<fs::path> left;
  for (const auto& entry : fs::directory_iterator(parent, ignored)) left.push_back(entry.path());
  for (const fs::path& path : left) {
    const std::string name = path.filename().string();
    const size_t end = name.find(kPartial);
    if (!name.starts_with("." + std::string(prefix)) || end == std::string::npos) continue;
    const fs::path target = parent / name.substr(1, end - 1);
    if (name.ends_with(kAside) && !fs::exists(target, ignored))
      fs::rename(path, target, ignored);
    else
      fs::remove_all(path, ignored);
  }
}

void sync_path(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool is_synced = fd >= 0 && (::fsync(fd) == 0 || errno == EINVAL);  // EINVAL: nothing here that can be synced
  const int reason = errno;
  if (fd >= 0) ::close(fd);
  if (!is_synced) fail(ErrorCode::io, "{}: cannot be written to the disk: {}", path.string(), std::strerror(reason));
}

void sync_tree(const fs::path& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error))
    entry.is_directory(error) ? sync_tree(entry.path()) : sync_path(entry.path());
  sync_path(directory);
}

OutputFile::OutputFile(fs::path path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(ErrorCode::io, "{}: cannot create: {}", path_.string(), std::strerror(errno));
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0)
      fail(ErrorCode::io, "{}: cannot write {} bytes: {}", path_.string(), bytes.size(), std::strerror(errno));
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void OutputFile::write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

void OutputFile::write_at(int64_t position, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd_, bytes.data(), bytes.size(), position);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0)
      fail(ErrorCode::io, "{}: cannot write {} bytes: {}", path_.string(), bytes.size(), std::strerror(errno));
    bytes = bytes.subspan(static_cast<size_t>(written));
    position += written;
  }
}

void OutputFile::close() {
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) fail(ErrorCode::io, "{}: cannot close: {}", path_.string(), std::strerror(errno));
}

void write_file(const fs::path& path, std::string_view text) {
  OutputFile file(path);
  file.write(text);
  file.close();
}

std::string read_file(const fs::path& path, size_t limit_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    fail(errno == ENOENT ? ErrorCode::not_found : ErrorCode::io, "{}: cannot open: {}", path.string(),
         std::strerror(errno));
  std::string text;
  std::string chunk(size_t{1} << 16, '\0');
  while (true) {
    const ssize_t got = ::read(fd, chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    const int error = errno;
    if (got <= 0) ::close(fd);
    if (got < 0) fail(ErrorCode::io, "{}: cannot read: {}", path.string(), std::strerror(error));
    if (got == 0) return text;
    if (text.size() + static_cast<size_t>(got) > limit_bytes) {
      ::close(fd);
      fail(ErrorCode::corrupt_file, "{}: larger than {} bytes", path.string(), limit_bytes);
    }
    text.append(chunk, 0, static_cast<size_t>(got));
  }
}

}  // namespace nibble
