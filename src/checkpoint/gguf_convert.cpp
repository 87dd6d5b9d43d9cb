// Decodes tensors one at a time under their Hugging Face names, with the rows of q and k back in their order.
#include "checkpoint/gguf_convert.h"

#include <cstring>
#include <unordered_map>

#include "base/cancel.h"
#include "base/output.h"
#include "checkpoint/gguf_config.h"
#include "checkpoint/gguf_tokenizer.h"
#include "checkpoint/safetensors_writer.h"

namespace nibble {
namespace {

constexpr int64_t kMaxShardBytes = int64_t{5} << 30;

// GGUF interleaves the two halves of each head's rows: its row 2i + h is row h * head_dim / 2 + i here.
Tensor undo_permutation(const Tensor& stored, int64_t head_dim) {
  Tensor result(stored.dtype(), stored.shape());
  const int64_t rows = stored.dim(0);
  const auto row_bytes = static_cast<size_t>(stored.size_bytes() / rows);
  const int64_t half = head_dim / 2;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t in_head = row % head_dim;
    const int64_t from = row - in_head + 2 * (in_head % half) + in_head / half;
    std::memcpy(result.as<std::byte>() + static_cast<size_t>(row) * row_bytes,
                stored.as<std::byte>() + static_cast<size_t>(from) * row_bytes, row_bytes);
  }
  return result;
}

class GgufCheckpoint final : public Checkpoint {
 public:
  GgufCheckpoint(std::shared_ptr<const GgufFile> file, DType dtype)
      : file_(std::move(file)), head_dim_(gguf_head_dim(*file_)) {
    const bool permutes = gguf_architecture(*file_).permutes_qk;
    for (const auto& tensor : file_->tensors()) {
      const auto name = gguf_parameter_name(*file_, tensor.name);
      if (!name) continue;
      const GgmlType& type = *find_ggml_type(tensor.type);
      infos_.push_back({*name, dtype, tensor.shape, 0, file_->source(), type.name,
                        decode_ggml_blocks(tensor.type, nullptr, 0, nullptr)});
      infos_.back().size_bytes = size_of(dtype) * tensor.size_bytes / type.block_bytes * type.block_values;
      const bool is_qk = name->find(".q_proj.") != std::string::npos || name->find(".k_proj.") != std::string::npos;
      places_.push_back({&tensor, permutes && is_qk});
      if (permutes && is_qk &&
          (head_dim_ % 2 != 0 || tensor.shape.empty() || tensor.shape[0] == 0 || tensor.shape[0] % head_dim_ != 0))
        fail(ErrorCode::corrupt_file, "{}: tensor '{}': shape {}, expected rows in heads of {}", file_->source(),
             tensor.name, to_string(tensor.shape), head_dim_);
    }
    for (size_t i = 0; i < infos_.size(); ++i)
      if (!index_.emplace(infos_[i].name, i).second)  // blk.1 and blk.01
        fail(ErrorCode::corrupt_file, "{}: tensor '{}': another one has that place", file_->source(),
             places_[i].tensor->name);
  }

  const std::vector<TensorInfo>& tensors() const override { return infos_; }

  const TensorInfo* find(std::string_view name) const override {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &infos_[found->second];
  }

  Tensor get(std::string_view name) const override {
    const size_t at = position(name);
    Tensor decoded = file_->decode(*places_[at].tensor, infos_[at].dtype);
    return places_[at].is_permuted ? undo_permutation(decoded, head_dim_) : decoded;
  }

  void release(std::string_view name) const override { file_->release(*places_[position(name)].tensor); }

 private:
  struct Place {
    const GgufTensor* tensor;
    bool is_permuted;
  };

  size_t position(std::string_view name) const {
    const auto found = index_.find(name);
    if (found == index_.end()) fail(ErrorCode::not_found, "{}: tensor '{}' is not in the file", file_->source(), name);
    return found->second;
  }

  std::shared_ptr<const GgufFile> file_;
  int64_t head_dim_;
  std::vector<TensorInfo> infos_;
  std::vector<Place> places_;
  std::unordered_map<std::string_view, size_t> index_;
};

void write_weights(const Checkpoint& checkpoint, SafetensorsWriter& writer, const Progress& progress) {
  const auto total = static_cast<uint64_t>(checkpoint.size_bytes());
  uint64_t done = 0;
  for (const auto& info : checkpoint.tensors()) {
    throw_if_cancelled();
    if (progress) progress("converting", done, total);
    writer.write(info.name, checkpoint.get(info.name).bytes());
    checkpoint.release(info.name);
    done += static_cast<uint64_t>(info.size_bytes);
  }
  writer.finish();
  if (progress) progress("converting", total, total);
}

}  // namespace

std::shared_ptr<const Checkpoint> gguf_checkpoint(std::shared_ptr<const GgufFile> file, DType dtype) {
  return std::make_shared<GgufCheckpoint>(std::move(file), dtype);
}

GgufModel open_gguf_model(const std::filesystem::path& path, DType dtype) {
  const auto file = GgufFile::open(path);
  return {gguf_checkpoint(file, dtype), gguf_config(*file, dtype), gguf_generation_config(*file),
          gguf_tokenizer_json(*file), gguf_tokenizer_config(*file)};
}

int64_t convert_gguf_file(std::shared_ptr<const GgufFile> file, const std::filesystem::path& directory, DType dtype,
                          const Progress& progress) {
  const auto checkpoint = gguf_checkpoint(file, dtype);
  for (const auto& info : checkpoint->tensors())  // before the first byte is written
    if (!info.is_supported)
      fail(ErrorCode::unsupported, "{}: tensor '{}': type {} is not supported", info.file, info.name, info.dtype_name);
  write_file(directory / "config.json", gguf_config(*file, dtype).dump(2) + "\n");
  write_file(directory / "generation_config.json", gguf_generation_config(*file).dump(2) + "\n");
  write_file(directory / "tokenizer.json", gguf_tokenizer_json(*file));
  write_file(directory / "tokenizer_config.json", gguf_tokenizer_config(*file).dump(2) + "\n");
  std::vector<PlannedTensor> plan;
  for (const auto& info : checkpoint->tensors()) plan.push_back({info.name, info.dtype, info.shape});
  SafetensorsWriter writer(directory, std::move(plan), kMaxShardBytes);
  write_weights(*checkpoint, writer, progress);
  return writer.bytes_written();
}

}  // namespace nibble
