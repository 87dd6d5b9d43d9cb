// Parses GGUF: every length is checked against what is left of the file before it is believed.
#include "checkpoint/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/checked.h"
#include "base/half.h"

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian");

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kValueTypes
};

constexpr std::array<int64_t, kValueTypes> kSmallestBytes{1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
constexpr int64_t kMaxArrayValues = int64_t{1}
                                    << 24;  // in a whole file: a value takes 40 bytes of memory for 1 of file
constexpr int kMaxArrayDepth = 4;
constexpr size_t kMaxDimensions = 4;

}  // namespace

class GgufParser {
 public:
  explicit GgufParser(GgufFile& file) : file_(file) {}
  void parse();

 private:
  size_t left() const { return file_.bytes_.size() - at_; }
  template <typename... Args>
  [[noreturn]] void corrupt(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorCode::corrupt_file, "{}: at byte {}: {}", file_.source_, at_,
         fmt::format(format, std::forward<Args>(args)...));
  }

  template <typename T>
  T read(std::string_view what) {
    if (left() < sizeof(T)) corrupt("the file ends within {}", what);
    T value;
    std::memcpy(&value, file_.bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  std::string read_text(std::string_view what);
  int64_t read_count(std::string_view what, int64_t smallest_bytes);
  GgufValue read_value(uint32_t type, const std::string& key, int depth);
  GgufArray read_array(const std::string& key, int depth);
  void read_metadata(int64_t count);
  void read_tensors(int64_t count);
  void place_tensors();

  GgufFile& file_;
  size_t at_ = 0;
  int64_t array_values_ = 0;
};

std::string GgufParser::read_text(std::string_view what) {
  const auto size = read<uint64_t>(what);
  if (size > left()) corrupt("{}: a text of {} bytes, {} are left", what, size, left());
  std::string text(reinterpret_cast<const char*>(file_.bytes_.data() + at_), size);
  at_ += size;
  return text;
}

// A count of things that take at least `smallest_bytes` each.
int64_t GgufParser::read_count(std::string_view what, int64_t smallest_bytes) {
  const auto count = read<uint64_t>(what);
  if (count > left() / static_cast<size_t>(smallest_bytes))
    corrupt("{} {}, but only {} bytes are left", count, what, left());
  return static_cast<int64_t>(count);
}

GgufArray GgufParser::read_array(const std::string& key, int depth) {
  if (depth > kMaxArrayDepth) corrupt("key '{}': arrays nested deeper than {}", key, kMaxArrayDepth);
  const auto type = read<uint32_t>(key);
  if (type >= kValueTypes) corrupt("key '{}': unknown value type {}", key, type);
  const int64_t count = read_count("values of '" + key + "'", kSmallestBytes[type]);
  array_values_ += count;
  if (array_values_ > kMaxArrayValues) corrupt("key '{}': more than {} array values", key, kMaxArrayValues);
  GgufArray array;
  array.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) array.push_back(read_value(type, key, depth + 1));
  return array;
}

GgufValue GgufParser::read_value(uint32_t type, const std::string& key, int depth) {
  switch (type) {
    case kU8:
      return {uint64_t{read<uint8_t>(key)}};
    case kI8:
      return {int64_t{read<int8_t>(key)}};
    case kU16:
      return {uint64_t{read<uint16_t>(key)}};
    case kI16:
      return {int64_t{read<int16_t>(key)}};
    case kU32:
      return {uint64_t{read<uint32_t>(key)}};
    case kI32:
      return {int64_t{read<int32_t>(key)}};
    case kF32:
      return {double{read<float>(key)}};
    case kBool:
      return {read<uint8_t>(key) != 0};
    case kString:
      return {read_text(key)};
    case kArray:
      return {read_array(key, depth)};
    case kU64:
      return {read<uint64_t>(key)};
    case kI64:
      return {read<int64_t>(key)};
    case kF64:
      return {read<double>(key)};
    default:
      corrupt("key '{}': unknown value type {}", key, type);
  }
}

void GgufParser::read_metadata(int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    std::string key = read_text("a metadata key");
    const auto type = read<uint32_t>(key);
    GgufValue value = read_value(type, key, 0);
    file_.metadata_.emplace_back(std::move(key), std::move(value));
  }
  for (size_t i = 0; i < file_.metadata_.size(); ++i)
    if (!file_.metadata_index_.emplace(file_.metadata_[i].first, i).second)
      corrupt("key '{}' appears twice", file_.metadata_[i].first);
}

void GgufParser::read_tensors(int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    GgufTensor tensor;
    tensor.name = read_text("a tensor name");
    const auto dimensions = read<uint32_t>(tensor.name);
    if (dimensions > kMaxDimensions)
      corrupt("tensor '{}': {} dimensions, expected at most {}", tensor.name, dimensions, kMaxDimensions);
    for (uint32_t d = 0; d < dimensions; ++d) {
      const auto size = read<uint64_t>(tensor.name);
      if (size > INT64_MAX) corrupt("tensor '{}': dimension {}", tensor.name, size);
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));  // the file has the innermost first
    }
    tensor.type = read<uint32_t>(tensor.name);
    tensor.offset = read<uint64_t>(tensor.name);
    const GgmlType* type = find_ggml_type(tensor.type);
    if (!type)
      fail(ErrorCode::unsupported, "{}: tensor '{}': unknown ggml type {}", file_.source_, tensor.name, tensor.type);
    const std::string what =
        fmt::format("{}: tensor '{}': shape {}", file_.source_, tensor.name, to_string(tensor.shape));
    const int64_t values = checked_count(tensor.shape, what);
    const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
    if (row % type->block_values != 0)
      corrupt("tensor '{}': rows of {} values are no whole {} blocks of {}", tensor.name, row, type->name,
              type->block_values);
    tensor.size_bytes = checked_mul(values / type->block_values, type->block_bytes, what);
    checked_mul(values, sizeof(float), what);  // what decoding takes
    file_.tensors_.push_back(std::move(tensor));
  }
  for (size_t i = 0; i < file_.tensors_.size(); ++i)
    if (!file_.tensor_index_.emplace(file_.tensors_[i].name, i).second)
      corrupt("tensor '{}' appears twice", file_.tensors_[i].name);
}

// Makes offsets absolute; tensors lie aligned, inside the file, and apart.
void GgufParser::place_tensors() {
  const int64_t alignment = file_.find_integer("general.alignment").value_or(32);
  if (alignment < 1 || alignment > (1 << 20) || !std::has_single_bit(static_cast<uint64_t>(alignment)))
    corrupt("general.alignment: found {}, expected a power of two up to 2^20", alignment);
  const uint64_t mask = static_cast<uint64_t>(alignment) - 1;
  const uint64_t begin = (at_ + mask) & ~mask, size = file_.bytes_.size();
  std::vector<const GgufTensor*> order;
  for (auto& tensor : file_.tensors_) {
    const auto bytes = static_cast<uint64_t>(tensor.size_bytes);
    if (begin > size || bytes > size - begin || tensor.offset > size - begin - bytes)
      corrupt("tensor '{}': {} bytes at offset {} lie outside the file's {} bytes", tensor.name, bytes, tensor.offset,
              size);
    if (tensor.offset & mask)
      corrupt("tensor '{}': offset {} is not a multiple of {}", tensor.name, tensor.offset, alignment);
    tensor.offset += begin;
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->offset, a->size_bytes) < std::pair(b->offset, b->size_bytes);
  });
  for (size_t i = 1; i < order.size(); ++i)
    if (order[i - 1]->offset + static_cast<uint64_t>(order[i - 1]->size_bytes) > order[i]->offset)
      corrupt("tensors '{}' and '{}' overlap", order[i - 1]->name, order[i]->name);
}

void GgufParser::parse() {
  if (left() < 4 || std::memcmp(file_.bytes_.data(), "GGUF", 4) != 0)
    fail(ErrorCode::corrupt_file, "{}: not a GGUF file: it does not start with 'GGUF'", file_.source_);
  at_ = 4;
  const auto version = read<uint32_t>("the version");
  if (version != 2 && version != 3)
    fail(ErrorCode::unsupported, "{}: GGUF version {}{}, expected 2 or 3", file_.source_, version,
         (version & 0xffff) == 0 ? " (big-endian?)" : "");
  const int64_t tensors = read_count("tensors", 24);  // name length, dimensions, type, offset
  const int64_t values = read_count("metadata values", 13);
  read_metadata(values);
  read_tensors(tensors);
  place_tensors();
}

std::shared_ptr<const GgufFile> GgufFile::parse(std::span<const std::byte> bytes, std::string_view source) {
  auto file = std::make_shared<GgufFile>();
  file->source_ = source;
  file->bytes_ = bytes;
  GgufParser(*file).parse();
  return file;
}

std::shared_ptr<const GgufFile> GgufFile::open(const std::filesystem::path& path) {
  auto file = std::make_shared<GgufFile>();
  file->source_ = path.string();
  file->file_ = MappedFile::open(path);
  file->bytes_ = file->file_->bytes();
  GgufParser(*file).parse();
  return file;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = metadata_index_.find(key);
  return found == metadata_index_.end() ? nullptr : &metadata_[found->second].second;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

void GgufFile::wrong_type(std::string_view key, std::string_view expected) const {
  fail(ErrorCode::corrupt_file, "{}: key '{}': expected {}", source_, key, expected);
}

std::optional<int64_t> GgufFile::find_integer(std::string_view key) const {
  const GgufValue* found = find(key);
  if (!found) return std::nullopt;
  if (const auto* value = std::get_if<int64_t>(&found->value)) return *value;
  const auto* value = std::get_if<uint64_t>(&found->value);
  if (!value || *value > INT64_MAX) wrong_type(key, "an integer");
  return static_cast<int64_t>(*value);
}

int64_t GgufFile::get_integer(std::string_view key) const {
  if (const auto value = find_integer(key)) return *value;
  fail(ErrorCode::corrupt_file, "{}: key '{}' is missing", source_, key);
}

std::optional<double> GgufFile::find_number(std::string_view key) const {
  const GgufValue* found = find(key);
  if (!found) return std::nullopt;
  if (const auto* value = std::get_if<double>(&found->value)) return *value;
  return static_cast<double>(*find_integer(key));
}

std::optional<bool> GgufFile::find_bool(std::string_view key) const {
  const GgufValue* found = find(key);
  if (!found) return std::nullopt;
  if (const auto* value = std::get_if<bool>(&found->value)) return *value;
  wrong_type(key, "a boolean");
}

const std::string* GgufFile::find_text(std::string_view key) const {
  const GgufValue* found = find(key);
  if (!found) return nullptr;
  if (const auto* value = std::get_if<std::string>(&found->value)) return value;
  wrong_type(key, "a text");
}

const GgufArray* GgufFile::find_array(std::string_view key) const {
  const GgufValue* found = find(key);
  if (!found) return nullptr;
  if (const auto* value = std::get_if<GgufArray>(&found->value)) return value;
  wrong_type(key, "an array");
}

Tensor GgufFile::decode(const GgufTensor& tensor, DType dtype) const {
  const GgmlType& type = *find_ggml_type(tensor.type);
  const auto* blocks = bytes_.data() + tensor.offset;
  Tensor result(dtype, tensor.shape);
  if (!decode_ggml_blocks(tensor.type, blocks, 0, nullptr))
    fail(ErrorCode::unsupported, "{}: tensor '{}': type {} is not supported", source_, tensor.name, type.name);
  if (dtype == DType::f32) {
    decode_ggml_blocks(tensor.type, blocks, result.count(), result.as<float>());
    return result;
  }
  if (dtype != DType::bf16 && dtype != DType::f16)
    fail(ErrorCode::invalid_argument, "{}: cannot decode to {}: expected float32, bfloat16 or float16", source_,
         name_of(dtype));
  constexpr int64_t kChunk = 4096;  // whole blocks of every type
  std::array<float, kChunk> values;
  for (int64_t done = 0; done < result.count(); done += kChunk) {
    const int64_t count = std::min(kChunk, result.count() - done);
    decode_ggml_blocks(tensor.type, blocks + done / type.block_values * type.block_bytes, count, values.data());
    for (int64_t i = 0; i < count; ++i) {
      if (dtype == DType::bf16)
        result.as<bf16_t>()[done + i] = to_bf16(values[static_cast<size_t>(i)]);
      else
        result.as<f16_t>()[done + i] = to_f16(values[static_cast<size_t>(i)]);
    }
  }
  return result;
}

void GgufFile::release(const GgufTensor& tensor) const {
  if (file_) file_->release(bytes_.subspan(tensor.offset, static_cast<size_t>(tensor.size_bytes)));
}

}  // namespace nibble
