// Look-ups with bounds.
#include "models/config_reader.h"

#include <cmath>

namespace nibble::models {

std::optional<int64_t> ConfigReader::find_integer(std::string_view key, int64_t least, int64_t most) const {
  const auto value = find_value<int64_t>(config_, key, source_);
  if (value && (*value < least || *value > most))
    refuse(key, *value, fmt::format("a whole number from {} to {}", least, most));
  return value;
}

int64_t ConfigReader::integer_or(std::string_view key, int64_t fallback, int64_t least, int64_t most) const {
  return find_integer(key, least, most).value_or(fallback);
}

int64_t ConfigReader::integer(std::string_view key, int64_t least, int64_t most) const {
  const auto value = find_integer(key, least, most);
  if (!value) refuse(key, "nothing", fmt::format("a whole number from {} to {}", least, most));
  return *value;
}

std::optional<double> ConfigReader::find_number(std::string_view key, double least, double most) const {
  const auto value = find_value<double>(config_, key, source_);
  if (value && !(*value >= least && *value <= most))
    refuse(key, *value, fmt::format("a number from {} to {}", least, most));
  return value;
}

double ConfigReader::number_or(std::string_view key, double fallback, double least, double most) const {
  return find_number(key, least, most).value_or(fallback);
}

std::string_view ConfigReader::first_of(std::initializer_list<std::string_view> keys) const {
  for (const std::string_view key : keys) {
    const auto found = config_.find(key);
    if (found != config_.end() && !found->is_null()) return key;
  }
  return *(keys.end() - 1);
}

std::string short_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60);
}

void ConfigReader::accept_only(std::string_view key, const Json& only) const {
  const auto found = config_.find(key);
  if (found == config_.end() || found->is_null() || *found == only) return;
  refuse(key, short_text(*found), short_text(only));
}

bool ConfigReader::flag_or(std::string_view key, bool fallback) const {
  return find_value<bool>(config_, key, source_).value_or(fallback);
}

std::optional<std::string> ConfigReader::find_text(std::string_view key) const {
  return find_value<std::string>(config_, key, source_);
}

std::string ConfigReader::text_or(std::string_view key, std::string_view fallback) const {
  return find_text(key).value_or(std::string(fallback));
}

const Json* ConfigReader::find_object(std::string_view key) const {
  if (!config_.is_object()) fail(ErrorCode::corrupt_file, "{}: found no JSON object", source_);
  const auto found = config_.find(key);
  if (found == config_.end() || found->is_null()) return nullptr;
  if (!found->is_object()) refuse(key, found->type_name(), "an object");
  return &*found;
}

}  // namespace nibble::models
