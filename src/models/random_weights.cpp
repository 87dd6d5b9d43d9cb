// One buffer of normal deviates that every tensor reads from an offset of its own.
#include "models/random_weights.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"
#include "base/random.h"
#include "models/module_tree.h"

namespace nibble::models {
namespace {

constexpr float kDeviation = 0.02f;         // as transformers initializes
constexpr int64_t kPeriod = (1 << 20) + 7;  // distinct values; odd, so that no two rows of a matrix are equal
constexpr int64_t kOffsets = 4096;

class RandomCheckpoint final : public Checkpoint {
 public:
  RandomCheckpoint(const ModelSpec& spec, DType dtype) : dtype_(dtype) {
    int64_t largest = 0;
    for_each_module(spec, [&](const std::string& path, const ModuleSpec& module) {
      for (const ParameterSpec& parameter : module.parameters) {
        const std::string name = join(path, parameter.name);
        if (resolve_tied(spec, name) != name) continue;
        const int64_t count = checked_count(parameter.shape, name);
        largest = std::max(largest, count);
        if (module.kind == ModuleKind::norm && parameter.name == "weight") ones_.insert(name);
        index_[name] = tensors_.size();
        TensorInfo info{
            name, dtype, parameter.shape, count * size_of(dtype), "random weights", std::string(name_of(dtype))};
        tensors_.push_back(std::move(info));
      }
    });
    values_ = fill(largest + kOffsets);
  }

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view name) const override {
    const auto found = index_.find(std::string(name));
    return found == index_.end() ? nullptr : &tensors_[found->second];
  }
  Tensor get(std::string_view name) const override {
    const TensorInfo* info = find(name);
    if (!info) fail(ErrorCode::not_found, "random weights: no tensor '{}'", name);
    if (ones_.contains(info->name)) return ones(info->shape);
    const auto offset = static_cast<int64_t>(index_.at(info->name) * 97 % kOffsets / 32 * 32);
    const auto* data = values_.as<std::byte>() + offset * size_of(dtype_);
    return Tensor::view(dtype_, info->shape, data, std::make_shared<Tensor>(values_));
  }
  void release(std::string_view) const override {}

 private:
  Tensor ones(const Shape& shape) const {
    Tensor result(DType::f32, shape);
    std::fill_n(result.as<float>(), result.count(), 1.0f);
    return result.to(dtype_);
  }

  Tensor fill(int64_t count) const {
    Random random(1);
    Tensor period(DType::f32, {std::min(count, kPeriod)});
    for (int64_t i = 0; i < period.count(); ++i)
      period.as<float>()[i] = static_cast<float>(random.normal()) * kDeviation;
    const Tensor source = period.to(dtype_);
    Tensor result(dtype_, {count});
    for (int64_t first = 0; first < count; first += source.count())
      std::copy_n(source.as<std::byte>(), std::min(source.count(), count - first) * size_of(dtype_),
                  result.as<std::byte>() + first * size_of(dtype_));
    return result;
  }

  DType dtype_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, size_t> index_;
  std::unordered_set<std::string> ones_;  // names
  Tensor values_;
};

}  // namespace

std::shared_ptr<const Checkpoint> random_checkpoint(const ModelSpec& spec, DType dtype) {
  return std::make_shared<RandomCheckpoint>(spec, dtype);
}

}  // namespace nibble::models
