// Finds a model by path or by hub id in the local Hugging Face cache.
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "base/output.h"
#include "nibble/model.h"

namespace nibble {
namespace fs = std::filesystem;
namespace {

fs::path hub_cache() {
  const auto from_environment = [](const char* name) -> fs::path {
    const char* value = std::getenv(name);
    return value ? value : "";
  };
  if (const fs::path cache = from_environment("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const fs::path home = from_environment("HF_HOME"); !home.empty()) return home / "hub";
  if (const fs::path xdg = from_environment("XDG_CACHE_HOME"); !xdg.empty()) return xdg / "huggingface" / "hub";
  return from_environment("HOME") / ".cache" / "huggingface" / "hub";
}

/// "org/name" or "name", of the characters the hub allows.
bool is_hub_id(const std::string& name) {
  constexpr std::string_view kAllowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./";
  return !name.empty() && name.find_first_not_of(kAllowed) == std::string::npos && name.front() != '/' &&
         name.front() != '.' && name.find("..") == std::string::npos &&
         std::count(name.begin(), name.end(), '/') <= 1 && name.back() != '/';
}

/// The commit that refs/main names, or else the snapshot written last; empty if there is none.
fs::path find_snapshot(const fs::path& root) {
  std::error_code error;
  if (fs::exists(root / "refs" / "main", error)) {
    std::string revision = read_file(root / "refs" / "main", 4096);
    while (!revision.empty() && std::isspace(static_cast<unsigned char>(revision.back()))) revision.pop_back();
    const fs::path snapshot = root / "snapshots" / revision;
    if (revision.find('/') == std::string::npos && fs::is_directory(snapshot, error)) return snapshot;
  }
  fs::path newest;
  fs::file_time_type newest_time = fs::file_time_type::min();
  for (const auto& entry : fs::directory_iterator(root / "snapshots", error))
    if (entry.is_directory() && entry.last_write_time() > newest_time) {
      newest = entry.path();
      newest_time = entry.last_write_time();
    }
  return newest;
}

}  // namespace

fs::path resolve_model(const std::string& name) {
  std::error_code error;
  if (fs::exists(name, error)) return name;
  const fs::path cache = hub_cache();
  if (is_hub_id(name)) {
    std::string folder = "models--";
    for (const char c : name) folder += c == '/' ? std::string("--") : std::string(1, c);
    if (const fs::path snapshot = find_snapshot(cache / folder); !snapshot.empty()) return snapshot;
  }
  fail(ErrorCode::not_found, "model '{}': found neither a file or directory of that name nor a snapshot in {}", name,
       cache.string());
}

}  // namespace nibble
