// Streams parameters: read mapped pages, quantize or convert, let the pages go.
#include "models/weights.h"

#include <algorithm>
#include <unordered_set>

#include "base/cancel.h"
#include "base/error.h"
#include "models/module_tree.h"
#include "tensor/convert.h"

namespace nibble::models {
namespace {

/// The name under which the checkpoint holds a parameter: base models are saved without the prefix.
const TensorInfo* find_info(const Checkpoint& checkpoint, const ModelSpec& spec, const std::string& name) {
  std::vector<std::string> candidates{name, stored_name(spec, name)};
  for (const auto& [tied, original] : spec.tied)  // files hold one of those that share a tensor, mostly the original
    if (original == name) candidates.push_back(tied);
  for (const std::string& candidate : candidates) {
    if (const TensorInfo* info = checkpoint.find(candidate)) return info;
    if (!candidate.starts_with(spec.base_prefix)) continue;
    if (const TensorInfo* info = checkpoint.find(candidate.substr(spec.base_prefix.size()))) return info;
  }
  return nullptr;
}

Shape swapped_if(bool is_swapped, Shape shape) {
  if (is_swapped) std::swap(shape[0], shape[1]);
  return shape;
}

void check_shape(const std::string& name, const Shape& found, const Shape& expected) {
  if (found != expected)
    fail(ErrorCode::corrupt_file, "tensor '{}': found shape {}, expected {} from config.json", name, to_string(found),
         to_string(expected));
}

/// Tensors that nothing used, statistics of quantized weights and known leftovers aside.
std::vector<std::string> unused_tensors(const Checkpoint& checkpoint, const ModelSpec& spec,
                                        const std::unordered_set<std::string>& used) {
  std::vector<std::string> unused;
  for (const TensorInfo& info : checkpoint.tensors()) {
    const std::string& name = info.name;
    const auto ends = [&](std::string_view suffix) { return name.ends_with(suffix); };
    if (used.contains(name) || ends(".SCB") || ends(".weight_format")) continue;
    if (const size_t at = name.find(".weight."); at != std::string::npos && used.contains(name.substr(0, at + 7)))
      continue;
    if (std::any_of(spec.ignored_suffixes.begin(), spec.ignored_suffixes.end(), ends)) continue;
    if (resolve_tied(spec, name) != name) continue;
    unused.push_back(name);
  }
  return unused;
}

}  // namespace

void untie_different(ModelSpec& spec, const Checkpoint& checkpoint) {
  std::erase_if(spec.tied, [&](const std::pair<std::string, std::string>& tie) {
    ModelSpec alone;  // neither name stands for the other
    alone.base_prefix = spec.base_prefix;
    alone.aliases = spec.aliases;
    const TensorInfo* tied = find_info(checkpoint, alone, tie.first);
    const TensorInfo* original = find_info(checkpoint, alone, tie.second);
    if (!tied || !original || tied == original) return false;
    if (tied->shape != original->shape || tied->dtype != original->dtype) return true;
    const Tensor a = checkpoint.get(tied->name), b = checkpoint.get(original->name);
    return !std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin());
  });
}

StoredWeight find_stored(const Checkpoint& checkpoint, const ModelSpec& spec, const std::string& name,
                         const Shape& shape, bool is_transposed) {
  const TensorInfo* info = find_info(checkpoint, spec, name);
  if (!info)
    fail(ErrorCode::corrupt_file, "tensor '{}' is missing; expected shape {} from config.json", name, to_string(shape));
  StoredWeight stored{info->name, {}, {}};
  if (info->dtype == DType::i8 && (stored.rows = find_int8(checkpoint, info->name))) {
    check_shape(info->name, stored.rows->values.shape(), swapped_if(is_transposed, shape));
    return stored;
  }
  if (info->shape != shape && (stored.packed = find_4bit(checkpoint, info->name))) {
    check_shape(info->name, stored.packed->shape, swapped_if(is_transposed, shape));
    return stored;
  }
  check_shape(info->name, info->shape, shape);
  if (!is_float(info->dtype))
    fail(ErrorCode::corrupt_file, "tensor '{}': found {} elements, expected float32, bfloat16 or float16", info->name,
         name_of(info->dtype));
  return stored;
}

nn::Weight weight_from_stored(const StoredWeight& stored, const BitsAndBytesConfig& config) {
  if (stored.rows)
    return nn::WeightInt8{{stored.rows->values, stored.rows->absmax}, static_cast<float>(config.llm_int8_threshold)};
  const Stored4Bit& packed = *stored.packed;
  ops::Tensor4Bit weight;
  weight.packed = packed.packed;
  weight.absmax = packed.absmax;
  weight.is_nested = packed.is_nested;
  weight.nested_absmax = packed.nested_absmax;
  weight.nested_code_book = packed.nested_quant_map;
  weight.nested_offset = packed.nested_offset;
  weight.format = &ops::format_4bit(packed.quant_type);
  weight.block = packed.blocksize;
  weight.shape = packed.shape;
  weight.dtype = packed.dtype;
  return nn::Weight4Bit{std::move(weight), config.bnb_4bit_compute_dtype};
}

nn::Weight quantize_weight(const ops::Backend& backend, const Tensor& x, const BitsAndBytesConfig& config) {
  if (config.load_in_8bit)
    return nn::WeightInt8{ops::quantize_int8_weight(backend, x), static_cast<float>(config.llm_int8_threshold)};
  return nn::Weight4Bit{ops::quantize_4bit(backend, x, ops::format_4bit(config.bnb_4bit_quant_type),
                                           config.bnb_4bit_blocksize, config.bnb_4bit_use_double_quant),
                        config.bnb_4bit_compute_dtype};
}

const nn::Weight& Weights::get(const std::string& name) const {
  const auto found = parameters_.find(name);
  if (found == parameters_.end()) fail(ErrorCode::internal, "parameter '{}' was not loaded", name);
  return found->second;
}

const Tensor& Weights::dense(const std::string& name) const {
  const auto* weight = std::get_if<nn::DenseWeight>(&get(name));
  if (!weight) fail(ErrorCode::unsupported, "tensor '{}': found a quantized weight, expected a plain one", name);
  return weight->weight;
}

/// One parameter at a time, in the order of the module tree.
class WeightLoader {
 public:
  WeightLoader(const ModelSpec& spec, const ops::Backend& backend, const WeightOptions& options, Weights& weights)
      : spec_(spec), backend_(backend), options_(options), weights_(weights), checkpoint_(*weights.checkpoint_) {}

  void run() {
    total_ = static_cast<uint64_t>(checkpoint_.size_bytes());
    for_each_module(spec_, [&](const std::string& path, const ModuleSpec& module) {
      for (const ParameterSpec& parameter : module.parameters) load(path, module, parameter);
    });
    if (options_.progress) options_.progress("loading", total_, total_);
    const auto unused = unused_tensors(checkpoint_, spec_, used_);
    if (!unused.empty() && options_.warning)
      options_.warning(
          fmt::format("{} tensors of the checkpoint are not used, the first is '{}'", unused.size(), unused[0]));
  }

 private:
  void load(const std::string& path, const ModuleSpec& module, const ParameterSpec& parameter) {
    throw_if_cancelled();
    const std::string name = join(path, parameter.name);
    dtype_ = parameter_dtype(spec_, path, weights_.dtype_);
    const bool is_weight = module.kind == ModuleKind::linear && parameter.name == "weight";
    const bool wants_quantized = is_weight && weights_.plan_.is_quantized(path);
    const std::string& original = resolve_tied(spec_, name);
    if (original != name && !wants_quantized) {
      weights_.parameters_[name] = nn::DenseWeight{dense(original, parameter.shape)};
      return;
    }
    weights_.names_.push_back(name);
    weights_.parameters_[name] = is_weight ? linear_weight(path, module, original, wants_quantized)
                                           : nn::DenseWeight{dense(name, parameter.shape)};
    if (options_.progress) options_.progress("loading", std::min(done_, total_), total_);
  }

  nn::Weight linear_weight(const std::string& path, const ModuleSpec& module, const std::string& name,
                           bool wants_quantized) {
    const Shape& shape = module.parameters[0].shape;
    const StoredWeight stored = find_stored(checkpoint_, spec_, name, shape, module.is_transposed);
    if (stored.is_quantized()) {
      note(stored.name);
      weights_.plan_.quantized.insert(path);
      std::erase(weights_.plan_.skipped, path);
      if (stored.packed) weights_.plan_.config.bnb_4bit_blocksize = stored.packed->blocksize;
      return nn::to_device(backend_, weight_from_stored(stored, weights_.plan_.config));
    }
    if (wants_quantized && options_.is_prequantized) {
      weights_.plan_.quantized.erase(path);
      weights_.plan_.skipped.push_back(path);
      wants_quantized = false;
    }
    if (!wants_quantized && !module.is_transposed) return nn::DenseWeight{dense(name, shape)};
    Tensor plain = converted(checkpoint_.get(stored.name), dtype_, backend_.pool());
    if (module.is_transposed) plain = plain.transposed();
    nn::Weight result = wants_quantized ? quantize_weight(backend_, plain, weights_.plan_.config)
                                        : nn::Weight(nn::DenseWeight{backend_.to_device(plain)});
    note(stored.name);
    checkpoint_.release(stored.name);
    return result;
  }

  /// A view of the file, or a copy in another type or on the GPU.
  Tensor dense(const std::string& name, const Shape& shape) {
    if (const auto found = weights_.parameters_.find(name); found != weights_.parameters_.end())
      if (const auto* weight = std::get_if<nn::DenseWeight>(&found->second)) return weight->weight;
    const StoredWeight stored = find_stored(checkpoint_, spec_, name, shape, false);
    if (stored.is_quantized())
      fail(ErrorCode::unsupported, "tensor '{}': found a quantized tensor, expected a plain one", stored.name);
    note(stored.name);
    const Tensor mapped = checkpoint_.get(stored.name);
    Tensor result = backend_.to_device(converted(mapped, dtype_, backend_.pool()));
    if (result.data() != mapped.data()) checkpoint_.release(stored.name);
    return result;
  }

  void note(const std::string& stored_name) {
    if (used_.insert(stored_name).second) done_ += static_cast<uint64_t>(checkpoint_.find(stored_name)->size_bytes);
  }

  const ModelSpec& spec_;
  const ops::Backend& backend_;
  const WeightOptions& options_;
  Weights& weights_;
  const Checkpoint& checkpoint_;
  std::unordered_set<std::string> used_;
  DType dtype_ = DType::f32;  // of the parameter that is being loaded, if it is not quantized
  uint64_t done_ = 0;
  uint64_t total_ = 0;
};

Weights Weights::with(const std::unordered_map<std::string, nn::Weight>& modules) const {
  Weights result = *this;
  for (const auto& [module, weight] : modules) result.parameters_.at(module + ".weight") = weight;
  return result;
}

std::unique_ptr<Weights> load_weights(const ModelSpec& spec, std::shared_ptr<const Checkpoint> checkpoint,
                                      QuantizationPlan plan, const ops::Backend& backend,
                                      const WeightOptions& options) {
  auto weights = std::make_unique<Weights>();
  weights->checkpoint_ = std::move(checkpoint);
  weights->plan_ = std::move(plan);
  weights->dtype_ = options.dtype;
  WeightLoader(spec, backend, options, *weights).run();
  return weights;
}

}  // namespace nibble::models
