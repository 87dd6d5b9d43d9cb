// JSON behind one file: parsing with errors that name the source, and typed look-ups that name the key.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace nibble {

/// Keeps the order of keys, so that a config is written back as it was read.
using Json = nlohmann::ordered_json;

/// Parses `text`; `source` names it in errors (corrupt_file). Nesting deeper than 200 is refused.
Json parse_json(std::string_view text, std::string_view source);

/// Reads and parses a file. Errors: not_found, io, corrupt_file.
Json read_json(const std::filesystem::path& path);

/// As Python's json.dumps with ensure_ascii off: ", " and ": " between items, shortest round-trip numbers.
std::string dump_json(const Json& value);

/// Value at `key`, or nullopt if it is missing or null; a value of another type is corrupt_file.
template <typename T>
std::optional<T> find_value(const Json& object, std::string_view key, std::string_view source) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end() || found->is_null()) return std::nullopt;
  bool fits = false;
  if constexpr (std::is_same_v<T, bool>)
    fits = found->is_boolean();
  else if constexpr (std::is_integral_v<T>)
    fits = found->is_number_integer();
  else if constexpr (std::is_floating_point_v<T>)
    fits = found->is_number();
  else if constexpr (std::is_same_v<T, std::string>)
    fits = found->is_string();
  else
    fits = true;
  if (fits) {
    try {
      return found->template get<T>();
    } catch (const nlohmann::json::exception&) {
    }
  }
  std::string text = found->dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  fail(ErrorCode::corrupt_file, "{}: key '{}': unexpected value {}", source, key, text);
}

/// Value at `key`; missing is corrupt_file.
template <typename T>
T get_value(const Json& object, std::string_view key, std::string_view source) {
  if (auto value = find_value<T>(object, key, source)) return *std::move(value);
  fail(ErrorCode::corrupt_file, "{}: key '{}' is missing", source, key);
}

}  // namespace nibble
