// Typed, bounded look-ups in a config.json: nothing in it is trusted.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"

namespace nibble::models {

/// Borrows the config. Errors are corrupt_file and name the source, the key, what was found and what was expected.
class ConfigReader {
 public:
  ConfigReader(const Json& config, std::string_view source) : config_(config), source_(source) {}

  const Json& json() const { return config_; }
  std::string_view source() const { return source_; }

  /// A whole number from `least` to `most`.
  int64_t integer(std::string_view key, int64_t least, int64_t most) const;
  int64_t integer_or(std::string_view key, int64_t fallback, int64_t least, int64_t most) const;
  std::optional<int64_t> find_integer(std::string_view key, int64_t least, int64_t most) const;
  /// A finite number from `least` to `most`.
  double number_or(std::string_view key, double fallback, double least, double most) const;
  std::optional<double> find_number(std::string_view key, double least, double most) const;
  bool flag_or(std::string_view key, bool fallback) const;
  std::string text_or(std::string_view key, std::string_view fallback) const;
  std::optional<std::string> find_text(std::string_view key) const;
  /// The first of `keys` that the config has and that is not null, or the last: for keys that were renamed.
  std::string_view first_of(std::initializer_list<std::string_view> keys) const;
  /// Refuses any other value of `key` than `only`, null or none.
  void accept_only(std::string_view key, const Json& only) const;
  /// An object at `key`, or nullptr if it is missing or null.
  const Json* find_object(std::string_view key) const;

  template <typename Found>
  [[noreturn]] void refuse(std::string_view key, const Found& found, std::string_view expected) const {
    fail(ErrorCode::corrupt_file, "{}: key '{}': found {}, expected {}", source_, key, found, expected);
  }

 private:
  const Json& config_;
  std::string source_;
};

/// A value of a config for an error message, cut if long.
std::string short_text(const Json& value);

// Bounds that keep every product of sizes far inside 64 bits.
inline constexpr int64_t kMaxWidth = int64_t{1} << 24;
inline constexpr int64_t kMaxVocab = int64_t{1} << 28;
inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxHeads = int64_t{1} << 16;
inline constexpr int64_t kMaxPositions = int64_t{1} << 31;

}  // namespace nibble::models
