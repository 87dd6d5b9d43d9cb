// Checkpoint over mapped safetensors files: one file, or shards with their index.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "base/checked.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/output.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_convert.h"
#include "checkpoint/safetensors_header.h"

namespace nibble {
namespace fs = std::filesystem;
namespace {

class SafetensorsCheckpoint final : public Checkpoint {
 public:
  // `file` owns `bytes`; null when the caller keeps them alive.
  void add_file(std::span<const std::byte> bytes, const std::shared_ptr<const MappedFile>& file,
                const std::string& source) {
    for (auto& entry : parse_safetensors_header(bytes, source)) {
      Place place{bytes.subspan(static_cast<size_t>(entry.begin), static_cast<size_t>(entry.end - entry.begin)), file};
      infos_.push_back({std::move(entry.name), entry.dtype.value_or(DType::u8), std::move(entry.shape),
                        entry.end - entry.begin, source, std::move(entry.dtype_name), entry.dtype.has_value()});
      places_.push_back(std::move(place));
    }
  }

  void index_names() {
    index_.reserve(infos_.size());
    for (size_t i = 0; i < infos_.size(); ++i) {
      const auto [found, is_new] = index_.emplace(infos_[i].name, i);
      if (!is_new)
        fail(ErrorCode::corrupt_file, "tensor '{}' is in two files: {} and {}", infos_[i].name,
             infos_[found->second].file, infos_[i].file);
    }
  }

  const std::vector<TensorInfo>& tensors() const override { return infos_; }

  const TensorInfo* find(std::string_view name) const override {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &infos_[found->second];
  }

  Tensor get(std::string_view name) const override {
    const size_t at = position(name);
    const TensorInfo& info = infos_[at];
    const Place& place = places_[at];
    if (!info.is_supported)
      fail(ErrorCode::unsupported, "{}: tensor '{}': dtype {} is not supported", info.file, info.name, info.dtype_name);
    if (reinterpret_cast<uintptr_t>(place.bytes.data()) % static_cast<size_t>(size_of(info.dtype)) == 0)
      return Tensor::view(info.dtype, info.shape, place.bytes.data(), place.file);
    Tensor copy(info.dtype, info.shape);
    std::memcpy(copy.data(), place.bytes.data(), place.bytes.size());
    return copy;
  }

  void release(std::string_view name) const override {
    const Place& place = places_[position(name)];
    if (place.file) place.file->release(place.bytes);
  }

 private:
  struct Place {
    std::span<const std::byte> bytes;
    std::shared_ptr<const MappedFile> file;
  };

  size_t position(std::string_view name) const {
    const auto found = index_.find(name);
    if (found == index_.end())
      fail(ErrorCode::not_found, "tensor '{}' is not in the checkpoint ({})", name,
           infos_.empty() ? "no tensors" : infos_[0].file);
    return found->second;
  }

  std::vector<TensorInfo> infos_;
  std::vector<Place> places_;
  std::unordered_map<std::string_view, size_t> index_;
};

std::shared_ptr<const Checkpoint> open_files(const std::vector<fs::path>& paths) {
  auto checkpoint = std::make_shared<SafetensorsCheckpoint>();
  for (const auto& path : paths) {
    const auto file = MappedFile::open(path);
    checkpoint->add_file(file->bytes(), file, path.string());
  }
  checkpoint->index_names();
  return checkpoint;
}

// An index names a file for each tensor. A file outside the directory is refused: an index is data, not a path to
// follow.
std::shared_ptr<const Checkpoint> open_index(const fs::path& index_path) {
  const std::string text = read_file(index_path, size_t{1} << 28);
  // nlohmann::json, not Json: an ordered object of 100,000 keys takes minutes to build.
  nlohmann::json index = nlohmann::json::parse(text, nullptr, false);
  const std::string source = index_path.string();
  if (index.is_discarded()) fail(ErrorCode::corrupt_file, "{}: broken JSON", source);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object() || map->empty())
    fail(ErrorCode::corrupt_file, "{}: key 'weight_map' is missing, empty or no object", source);
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) fail(ErrorCode::corrupt_file, "{}: tensor '{}': the file name is no text", source, tensor);
    const auto& name = file.get_ref<const std::string&>();
    if (name.empty() || name == ".." || name.find('/') != std::string::npos || name.find('\0') != std::string::npos)
      fail(ErrorCode::corrupt_file, "{}: tensor '{}': '{}' is not a plain file name", source, tensor, name);
    names.insert(name);
  }
  std::vector<fs::path> paths;
  for (const auto& name : names) {
    paths.push_back(index_path.parent_path() / name);
    std::error_code ignored;
    if (!fs::exists(paths.back(), ignored))
      fail(ErrorCode::not_found, "{}: missing shard, named in {}", paths.back().string(), source);
  }
  auto checkpoint = open_files(paths);
  for (const auto& [tensor, file] : map->items()) {
    const TensorInfo* info = checkpoint->find(tensor);
    const fs::path expected = index_path.parent_path() / file.get_ref<const std::string&>();
    if (!info || info->file != expected.string())
      fail(ErrorCode::corrupt_file, "{}: tensor '{}' named in {} is {}", expected.string(), tensor, source,
           info ? "in " + info->file : "missing");
  }
  return checkpoint;
}

}  // namespace

int64_t Checkpoint::size_bytes() const {
  int64_t total = 0;
  for (const auto& info : tensors()) total = checked_add(total, info.size_bytes, "checkpoint size");
  return total;
}

std::shared_ptr<const Checkpoint> Checkpoint::parse(std::span<const std::byte> bytes, std::string_view source) {
  auto checkpoint = std::make_shared<SafetensorsCheckpoint>();
  checkpoint->add_file(bytes, nullptr, std::string(source));
  checkpoint->index_names();
  return checkpoint;
}

std::shared_ptr<const Checkpoint> Checkpoint::open(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) fail(ErrorCode::not_found, "{}: no such file or directory", path.string());
  if (path.extension() == ".gguf") return gguf_checkpoint(GgufFile::open(path), DType::bf16);
  if (!fs::is_directory(path, error)) return open_files({path});
  if (fs::exists(path / "model.safetensors", error)) return open_files({path / "model.safetensors"});
  if (fs::exists(path / "model.safetensors.index.json", error))
    return open_index(path / "model.safetensors.index.json");
  std::vector<fs::path> found;
  for (const auto& item : fs::directory_iterator(path, error))
    if (item.path().extension() == ".safetensors") found.push_back(item.path());
  if (error) fail(ErrorCode::io, "{}: cannot list: {}", path.string(), error.message());
  if (found.empty())
    fail(ErrorCode::not_found, "{}: no weights: expected model.safetensors or model.safetensors.index.json",
         path.string());
  if (found.size() > 1)
    fail(ErrorCode::not_found, "{}: {} *.safetensors files and no model.safetensors.index.json to order them",
         path.string(), found.size());
  return open_files(found);
}

}  // namespace nibble
