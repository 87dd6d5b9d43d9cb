// From a directory, or its parts, to a Decoder.
#include "base/error.h"
#include "models/convert_weights.h"
#include "models/decoder.h"
#include "models/registry.h"

namespace nibble::models {
namespace {

/// The type of the first plain floating-point weight, as transformers' dtype="auto" without a config entry.
DType checkpoint_dtype(const Checkpoint& checkpoint) {
  for (const TensorInfo& info : checkpoint.tensors()) {
    if (is_float(info.dtype) && info.name.ends_with(".weight")) return info.dtype;
  }
  return DType::f32;
}

/// Errors: invalid_argument for a name that is not known, unsupported where codes are not.
bool has_narrow_cache(const LoadOptions& options, const ModelSpec& spec, const device::Device& device) {
  if (options.kv_cache_dtype == "auto") return false;
  require(options.kv_cache_dtype == "int8", "kv_cache_dtype: found '{}', expected auto or int8",
          options.kv_cache_dtype);
  if (device == device::kCpu)
    fail(ErrorCode::unsupported, "kv_cache_dtype int8 needs a GPU: this model runs on the CPU");
  if (spec.encoder) fail(ErrorCode::unsupported, "kv_cache_dtype int8: {} has an encoder", spec.architecture);
  return true;
}

}  // namespace

std::unique_ptr<Decoder> load_decoder(const std::filesystem::path& path, const LoadOptions& options) {
  const std::filesystem::path config_path = path / "config.json";
  Json config = read_json(config_path);
  return load_decoder(std::move(config), config_path.string(), Checkpoint::open(path), options);
}

std::unique_ptr<Decoder> load_decoder(Json config, std::string_view source,
                                      std::shared_ptr<const Checkpoint> checkpoint, const LoadOptions& options) {
  const device::Device device = options.device_map == "auto" ? device::kCpu : device::parse_device(options.device_map);
  ModelSpec spec = build_spec(config, source);
  untie_different(spec, *checkpoint);
  const auto stored = read_quantization_config(config, source);
  if (stored && options.quantization_config.is_quantizable() && options.warning)
    options.warning("the checkpoint is quantized already: its quantization_config is used, the one given is ignored");
  auto dtype = options.dtype ? options.dtype : config_dtype(config, source);
  if (!dtype) dtype = checkpoint_dtype(*checkpoint);
  const bool is_narrow = has_narrow_cache(options, spec, device);
  auto backend = std::make_shared<ops::Backend>(options.threads, device);
  require(options.max_memory == 0 || backend->cuda(), "max_memory: counts a GPU's memory, found a model on the CPU");
  if (backend->cuda()) backend->cuda()->limit_memory(options.max_memory);
  QuantizationPlan plan = plan_quantization(spec, stored ? *stored : options.quantization_config);
  auto weights = load_weights(spec, std::move(checkpoint), std::move(plan), *backend,
                              {.dtype = *dtype,
                               .is_prequantized = stored.has_value(),
                               .progress = options.progress,
                               .warning = options.warning});
  if (backend->cuda()) backend->cuda()->release_unused();  // what quantizing needed
  config = weights->plan().config.is_quantizable() ? quantized_config(std::move(config), spec, weights->plan(), *dtype)
                                                   : dequantized_config(std::move(config), *dtype);
  auto decoder = std::make_unique<Decoder>(std::move(spec), std::move(config), std::move(backend), std::move(weights));
  if (is_narrow) decoder->set_cache_dtype(DType::i8);
  return decoder;
}

}  // namespace nibble::models
