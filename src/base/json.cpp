// nlohmann-json behind base/json.h.
#include "base/json.h"

#include <unordered_map>
#include <utility>
#include <vector>

#include "base/output.h"

namespace nibble {

namespace {

constexpr size_t kMaxDepth = 200;

// Builds a Json from the parser's events. The library's own builder looks through an ordered object for every key it
// adds, so that an object of 50,000 keys takes seconds; here keys are appended and checked once.
class Builder {
 public:
  explicit Builder(std::string_view source) : source_(source) {}
  Json take() { return std::move(root_); }

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(Json::number_integer_t value) { return add(value); }
  bool number_unsigned(Json::number_unsigned_t value) { return add(value); }
  bool number_float(Json::number_float_t value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(Json::binary_t&) { return false; }  // not in text
  bool key(std::string& value) {
    key_ = std::move(value);
    return true;
  }
  bool start_object(size_t) { return open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool end_object() {
    keep_last_of_each_key(*open_.back()->get_ptr<Json::object_t*>());
    open_.pop_back();
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) {
    fail(ErrorCode::corrupt_file, "{}: broken JSON: {}", source_, error.what());
  }

 private:
  using Items = Json::object_t::Container;

  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (open_.size() >= kMaxDepth) fail(ErrorCode::corrupt_file, "{}: JSON nested deeper than {}", source_, kMaxDepth);
    open_.push_back(place(std::move(value)));
    return true;
  }

  // Appends to what is open; the result stays in place until its parent grows, which is after it was closed.
  Json* place(Json value) {
    if (open_.empty()) return &(root_ = std::move(value));
    if (open_.back()->is_array()) return &open_.back()->get_ptr<Json::array_t*>()->emplace_back(std::move(value));
    return &open_.back()->get_ptr<Json::object_t*>()->Items::emplace_back(std::move(key_), std::move(value)).second;
  }

  // As Python's json: the last value of a repeated key, at the place of its first.
  static void keep_last_of_each_key(Json::object_t& object) {
    std::unordered_map<std::string_view, size_t> places;
    places.reserve(object.size());
    for (const auto& item : object) places.emplace(item.first, places.size());
    if (places.size() == object.size()) return;
    std::vector<Json*> last(places.size());
    for (auto& item : object) last[places[item.first]] = &item.second;
    Json::object_t unique;
    std::vector<std::string> keys(places.size());
    for (const auto& [key, place] : places) keys[place] = key;
    for (size_t i = 0; i < keys.size(); ++i) unique.Items::emplace_back(std::move(keys[i]), std::move(*last[i]));
    object = std::move(unique);
  }

  std::string_view source_;
  Json root_;
  std::vector<Json*> open_;
  std::string key_;
};

}  // namespace

Json parse_json(std::string_view text, std::string_view source) {
  Builder builder(source);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
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
