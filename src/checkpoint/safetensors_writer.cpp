// Lays out each shard as the format's own library does (widest types first, then by name), so that every tensor is
// aligned.
#include "checkpoint/safetensors_writer.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>

#include "base/checked.h"
#include "base/json.h"
#include "base/output.h"
#include "checkpoint/safetensors_header.h"

namespace nibble {
namespace {

// Position in the order of the format's library, widest first.
int layout_rank(DType dtype) {
  constexpr std::array<DType, 10> kOrder{DType::i64, DType::f64, DType::f32, DType::i32, DType::bf16,
                                         DType::f16, DType::i16, DType::i8,  DType::u8,  DType::boolean};
  return static_cast<int>(std::find(kOrder.begin(), kOrder.end(), dtype) - kOrder.begin());
}

struct Planned {
  PlannedTensor tensor;
  int64_t size_bytes = 0;
  size_t shard = 0;
  int64_t position = 0;  // in the file
};

std::string quoted(const std::string& text) { return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace); }

// The header with its length, padded with spaces to 8 bytes; sets the positions.
std::string lay_out(std::vector<Planned*> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const Planned* a, const Planned* b) {
    const int left = layout_rank(a->tensor.dtype), right = layout_rank(b->tensor.dtype);
    return left != right ? left < right : a->tensor.name < b->tensor.name;
  });
  std::string json = R"({"__metadata__":{"format":"pt"})";
  int64_t offset = 0;
  for (Planned* planned : tensors) {
    const auto& [name, dtype, shape] = planned->tensor;
    planned->position = offset;
    offset = checked_add(offset, planned->size_bytes, name);
    json += fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", quoted(name),
                        safetensors_dtype_name(dtype), fmt::join(shape, ","), planned->position, offset);
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  require(json.size() <= static_cast<size_t>(kMaxSafetensorsHeaderBytes),
          "too many tensors in one file: a header of {} bytes", json.size());
  for (Planned* planned : tensors) planned->position += static_cast<int64_t>(json.size()) + 8;
  std::string header(8, '\0');
  for (size_t i = 0; i < 8; ++i) header[i] = static_cast<char>((json.size() >> (8 * i)) & 0xff);
  return header + json;
}

}  // namespace

struct SafetensorsWriter::State {
  std::filesystem::path directory;
  std::string stem;
  std::vector<Planned> tensors;
  size_t shards = 1;
  size_t next = 0;
  std::optional<OutputFile> file;
  int64_t bytes_written = 0;
  int64_t total_size = 0;

  std::string file_name(size_t shard) const {
    return shards == 1 ? stem + ".safetensors" : fmt::format("{}-{:05}-of-{:05}.safetensors", stem, shard + 1, shards);
  }

  void assign_shards(int64_t max_shard_size_bytes) {
    int64_t size = 0;
    for (auto& planned : tensors) {
      if (size > 0 && planned.size_bytes > max_shard_size_bytes - size) {
        ++shards;
        size = 0;
      }
      planned.shard = shards - 1;
      size = checked_add(size, planned.size_bytes, planned.tensor.name);
      total_size = checked_add(total_size, planned.size_bytes, planned.tensor.name);
    }
  }

  void open_shard(size_t shard) {
    if (file) file->close();
    file.reset();
    std::vector<Planned*> members;
    for (auto& planned : tensors)
      if (planned.shard == shard) members.push_back(&planned);
    const std::string header = lay_out(std::move(members));
    file.emplace(directory / file_name(shard));
    file->write(header);
    bytes_written += static_cast<int64_t>(header.size());
  }

  void write_index() const {
    std::map<std::string, size_t> sorted;
    for (const auto& planned : tensors) sorted[planned.tensor.name] = planned.shard;
    std::string text =
        fmt::format("{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{", total_size);
    std::string_view separator = "\n";
    for (const auto& [name, shard] : sorted) {
      text += fmt::format("{}    {}: \"{}\"", separator, quoted(name), file_name(shard));
      separator = ",\n";
    }
    write_file(directory / (stem + ".safetensors.index.json"), text + "\n  }\n}\n");
  }
};

SafetensorsWriter::SafetensorsWriter(std::filesystem::path directory, std::vector<PlannedTensor> tensors,
                                     int64_t max_shard_size_bytes, std::string stem)
    : state_(std::make_unique<State>()) {
  require(max_shard_size_bytes > 0, "maximum shard size: found {} bytes, expected more than 0", max_shard_size_bytes);
  state_->directory = std::move(directory);
  state_->stem = std::move(stem);
  std::map<std::string_view, int> names;
  for (auto& tensor : tensors) {
    const int64_t size = checked_mul(checked_count(tensor.shape, tensor.name), size_of(tensor.dtype), tensor.name);
    require(tensor.name != "__metadata__", "tensor name '__metadata__' is reserved");
    state_->tensors.push_back({std::move(tensor), size, 0, 0});
  }
  for (const auto& planned : state_->tensors)
    require(names[planned.tensor.name]++ == 0, "tensor '{}' is planned twice", planned.tensor.name);
  state_->assign_shards(max_shard_size_bytes);
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  State& state = *state_;
  require(state.next < state.tensors.size(), "tensor '{}' comes after the last planned one", name);
  const size_t shard = state.tensors[state.next].shard;
  if (state.next == 0 || shard != state.tensors[state.next - 1].shard) state.open_shard(shard);
  const Planned& planned = state.tensors[state.next];
  require(planned.tensor.name == name, "tensor '{}' is out of order: expected '{}'", name, planned.tensor.name);
  require(static_cast<int64_t>(bytes.size()) == planned.size_bytes, "tensor '{}': found {} bytes, expected {}", name,
          bytes.size(), planned.size_bytes);
  state.file->write_at(planned.position, bytes);
  state.bytes_written += planned.size_bytes;
  ++state.next;
}

void SafetensorsWriter::finish() {
  State& state = *state_;
  require(state.next == state.tensors.size(), "tensor '{}' was planned but not written",
          state.next < state.tensors.size() ? state.tensors[state.next].tensor.name : "");
  if (state.tensors.empty()) state.open_shard(0);
  state.file->close();
  state.file.reset();
  if (state.shards > 1) state.write_index();
}

int64_t SafetensorsWriter::bytes_written() const { return state_->bytes_written; }

}  // namespace nibble
