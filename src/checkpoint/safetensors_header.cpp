// Parses the JSON header as a stream of events: one pass, no tree, so that 100 MB of it stay harmless.
#include "checkpoint/safetensors_header.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/checked.h"

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

struct StoredType {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;
};

constexpr std::array<StoredType, 21> kStoredTypes{{
    {"F64", 64, DType::f64},      {"F32", 32, DType::f32},      {"F16", 16, DType::f16},
    {"BF16", 16, DType::bf16},    {"I64", 64, DType::i64},      {"I32", 32, DType::i32},
    {"I16", 16, DType::i16},      {"I8", 8, DType::i8},         {"U8", 8, DType::u8},
    {"BOOL", 8, DType::boolean},  {"U16", 16, std::nullopt},    {"U32", 32, std::nullopt},
    {"U64", 64, std::nullopt},    {"C64", 64, std::nullopt},    {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt}, {"F8_E8M0", 8, std::nullopt}, {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt}, {"F4", 4, std::nullopt},
}};

const StoredType* find_stored_type(std::string_view name) {
  const auto* found =
      std::find_if(kStoredTypes.begin(), kStoredTypes.end(), [&](const auto& t) { return t.name == name; });
  return found == kStoredTypes.end() ? nullptr : found;
}

// Receives the parser's events. Depth 1 holds tensors, depth 2 their fields; "__metadata__" is skipped.
class HeaderEvents {
 public:
  explicit HeaderEvents(std::string_view source) : source_(source) {}
  std::vector<SafetensorsEntry> take() { return std::move(entries_); }

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_float(double, const std::string& text) { return unexpected(text); }
  bool binary(std::vector<std::uint8_t>&) { return unexpected("binary data"); }
  bool number_integer(int64_t value) { return is_metadata_ || unexpected(fmt::format("{}", value)); }
  bool number_unsigned(uint64_t value);
  bool string(std::string& text);
  bool key(std::string& text);
  bool start_object(size_t);
  bool end_object();
  bool start_array(size_t);
  bool end_array();
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) {
    fail(ErrorCode::corrupt_file, "{}: broken JSON in the header at byte {}", source_, position);
  }

 private:
  enum class Field { none, dtype, shape, data_offsets };
  bool unexpected(std::string_view found) const;

  std::string_view source_;
  std::vector<SafetensorsEntry> entries_;
  std::vector<int64_t> offsets_;
  Field field_ = Field::none;
  int depth_ = 0;
  int seen_ = 0;  // bit per field of the current tensor
  bool in_array_ = false;
  bool is_metadata_ = false;
};

bool HeaderEvents::unexpected(std::string_view found) const {
  if (is_metadata_) return true;
  if (entries_.empty())
    fail(ErrorCode::corrupt_file, "{}: header: found {}, expected a JSON object of tensors", source_, found);
  fail(ErrorCode::corrupt_file, "{}: tensor '{}': found {} in the header, expected dtype, shape and data_offsets",
       source_, entries_.back().name, found);
}

bool HeaderEvents::number_unsigned(uint64_t value) {
  if (is_metadata_) return true;
  if (!in_array_ || value > INT64_MAX) return unexpected(fmt::format("the number {}", value));
  (field_ == Field::shape ? entries_.back().shape : offsets_).push_back(static_cast<int64_t>(value));
  return true;
}

bool HeaderEvents::string(std::string& text) {
  if (is_metadata_) return true;
  if (depth_ != 2 || in_array_ || field_ != Field::dtype) return unexpected("the text '" + text.substr(0, 40) + "'");
  entries_.back().dtype_name = text;
  return true;
}

bool HeaderEvents::key(std::string& text) {
  if (depth_ == 1) {
    is_metadata_ = text == "__metadata__";
    if (is_metadata_) return true;
    entries_.emplace_back().name = std::move(text);
    offsets_.clear();
    seen_ = 0;
    return true;
  }
  if (is_metadata_) return true;
  field_ = text == "dtype"          ? Field::dtype
           : text == "shape"        ? Field::shape
           : text == "data_offsets" ? Field::data_offsets
                                    : Field::none;
  const int bit = 1 << static_cast<int>(field_);
  if (field_ == Field::none || (seen_ & bit)) return unexpected("key '" + text.substr(0, 40) + "'");
  seen_ |= bit;
  return true;
}

bool HeaderEvents::start_object(size_t) {
  if (++depth_ > 2) return unexpected("a nested object");
  return true;
}

bool HeaderEvents::end_object() {
  if (--depth_ != 1) return true;
  if (is_metadata_) {
    is_metadata_ = false;
    return true;
  }
  SafetensorsEntry& entry = entries_.back();
  constexpr int kAll = 1 << static_cast<int>(Field::dtype) | 1 << static_cast<int>(Field::shape) |
                       1 << static_cast<int>(Field::data_offsets);
  if (seen_ != kAll || offsets_.size() != 2)
    fail(ErrorCode::corrupt_file, "{}: tensor '{}': expected dtype, shape and two data_offsets in the header", source_,
         entry.name);
  entry.begin = offsets_[0];
  entry.end = offsets_[1];
  return true;
}

bool HeaderEvents::start_array(size_t) {
  if (is_metadata_) return true;
  if (depth_ != 2 || in_array_ || (field_ != Field::shape && field_ != Field::data_offsets))
    return unexpected("an array");
  in_array_ = true;
  return true;
}

bool HeaderEvents::end_array() {
  in_array_ = false;
  return true;
}

// Type, shape and offsets of one entry against each other and the file; makes the offsets absolute.
void check_entry(SafetensorsEntry& entry, int64_t data_begin, int64_t file_size, std::string_view source) {
  const StoredType* type = find_stored_type(entry.dtype_name);
  if (!type) fail(ErrorCode::corrupt_file, "{}: tensor '{}': unknown dtype '{}'", source, entry.name, entry.dtype_name);
  entry.dtype = type->dtype;
  const std::string what = fmt::format("{}: tensor '{}': shape {}", source, entry.name, to_string(entry.shape));
  const int64_t bits = checked_mul(checked_count(entry.shape, what), type->bits, what);
  if (entry.begin > entry.end || entry.end > file_size - data_begin)
    fail(ErrorCode::corrupt_file, "{}: tensor '{}': data_offsets [{}, {}] lie outside the file's {} bytes of data",
         source, entry.name, entry.begin, entry.end, file_size - data_begin);
  if (bits % 8 != 0 || entry.end - entry.begin != bits / 8)
    fail(ErrorCode::corrupt_file, "{}: tensor '{}': data_offsets span {} bytes, expected {} for {} {}", source,
         entry.name, entry.end - entry.begin, bits / 8, entry.dtype_name, to_string(entry.shape));
  entry.begin += data_begin;
  entry.end += data_begin;
}

}  // namespace

std::string_view safetensors_dtype_name(DType dtype) {
  for (const auto& type : kStoredTypes)
    if (type.dtype == dtype) return type.name;
  fail(ErrorCode::internal, "no safetensors name for {}", name_of(dtype));
}

std::vector<SafetensorsEntry> parse_safetensors_header(std::span<const std::byte> file, std::string_view source) {
  const auto file_size = static_cast<int64_t>(file.size());
  uint64_t length = 0;
  if (file.size() < sizeof length)
    fail(ErrorCode::corrupt_file, "{}: {} bytes, expected at least 8", source, file_size);
  std::memcpy(&length, file.data(), sizeof length);
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes))
    fail(ErrorCode::corrupt_file, "{}: header of {} bytes, expected at most {}", source, length,
         kMaxSafetensorsHeaderBytes);
  const int64_t data_begin = 8 + static_cast<int64_t>(length);
  if (data_begin > file_size)
    fail(ErrorCode::corrupt_file, "{}: header of {} bytes in a file of {} bytes: truncated?", source, length,
         file_size);

  HeaderEvents events(source);
  const auto* text = reinterpret_cast<const char*>(file.data()) + 8;
  if (length == 0 || *text != '{') fail(ErrorCode::corrupt_file, "{}: the header does not start with '{{'", source);
  nlohmann::json::sax_parse(text, text + length, &events);
  std::vector<SafetensorsEntry> entries = events.take();

  std::unordered_set<std::string_view> names;
  for (auto& entry : entries) {
    if (!names.insert(entry.name).second)
      fail(ErrorCode::corrupt_file, "{}: tensor '{}' appears twice", source, entry.name);
    check_entry(entry, data_begin, file_size, source);
  }
  names.clear();  // the views move with the entries
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  int64_t position = data_begin;
  for (const auto& entry : entries) {
    if (entry.begin != position)
      fail(ErrorCode::corrupt_file, "{}: tensor '{}': data begins at byte {}, expected {}: tensors {}", source,
           entry.name, entry.begin, position, entry.begin < position ? "overlap" : "leave a gap");
    position = entry.end;
  }
  if (position != file_size)
    fail(ErrorCode::corrupt_file, "{}: tensors end at byte {}, the file at {}", source, position, file_size);
  return entries;
}

}  // namespace nibble
