// nlohmann-json behind base/json.h.
#include "base/json.h"

#include "base/output.h"

namespace nibble {

Json parse_json(std::string_view text, std::string_view source) {
  constexpr int kMaxDepth = 200;
  const auto limit_depth = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) fail(ErrorCode::corrupt_file, "{}: JSON nested deeper than {}", source, kMaxDepth);
    return true;
  };
  try {
    return Json::parse(text, limit_depth);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::corrupt_file, "{}: broken JSON: {}", source, error.what());
  }
}

Json read_json(const std::filesystem::path& path) { return parse_json(read_file(path), path.string()); }

namespace {

void dump_into(const Json& value, std::string& out) {
  if (value.is_object()) {
    out += '{';
    bool first = true;
    for (const auto& [key, item] : value.items()) {
      if (!std::exchange(first, false)) out += ", ";
      out += Json(key).dump(-1, ' ', false, Json::error_handler_t::replace);
      out += ": ";
      dump_into(item, out);
    }
    out += '}';
  } else if (value.is_array()) {
    out += '[';
    bool first = true;
    for (const auto& item : value) {
      if (!std::exchange(first, false)) out += ", ";
      dump_into(item, out);
    }
    out += ']';
  } else {
    out += value.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
}

}  // namespace

std::string dump_json(const Json& value) {
  std::string out;
  dump_into(value, out);
  return out;
}

}  // namespace nibble
