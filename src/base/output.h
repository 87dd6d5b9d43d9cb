// Output that appears whole or not at all: written beside its final place, then renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

/// What becomes of a directory that lies where an AtomicDirectory goes.
enum class OldOutput { refused, replaced };

/// A new directory that becomes visible under its name on commit(); removed if it is destroyed before.
class AtomicDirectory {
 public:
  /// Creates a hidden sibling of `target`. Errors: invalid_argument if `target` exists and is neither an empty
  /// directory nor one to be replaced, io if the parent cannot be written.
  explicit AtomicDirectory(std::filesystem::path target, OldOutput old = OldOutput::refused);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// Where to write until commit().
  const std::filesystem::path& path() const { return staging_; }
  /// Renames into place; what is replaced goes afterwards, or comes back if that fails. Errors: io.
  void commit();
  /// The same, and a loss of power leaves the old directory or the new one, whole. Errors: io.
  void commit_synced();

 private:
  void rename_into_place();

  std::filesystem::path target_;
  OldOutput old_;
  std::filesystem::path staging_;
};

/// Removes what AtomicDirectories of killed processes left in `parent` for names that begin with `prefix`. A directory
/// that had been moved aside for one that never came is put back.
void recover_directories(const std::filesystem::path& parent, std::string_view prefix);

/// Waits until a file, or a directory's entries, would survive a loss of power. Errors: io.
void sync_path(const std::filesystem::path& path);
/// The same for a directory and everything in it.
void sync_tree(const std::filesystem::path& directory);

/// A file opened for writing with every error reported (no space, no permission) as Error{io}.
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Writes at a byte position, leaving the place of the next write() alone.
  void write_at(int64_t position, std::span<const std::byte> bytes);
  /// Errors that a destructor would swallow surface here.
  void close();

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

/// Writes a whole small file (through OutputFile).
void write_file(const std::filesystem::path& path, std::string_view text);

/// Reads a whole file. Errors: not_found, io; corrupt_file if it is larger than `limit_bytes`.
std::string read_file(const std::filesystem::path& path, size_t limit_bytes = size_t{1} << 30);

}  // namespace nibble
