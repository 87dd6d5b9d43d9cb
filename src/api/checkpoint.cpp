// include/nibble/checkpoint.h: one checkpoint in, another out, tensor by tensor.
#include "nibble/checkpoint.h"

#include <chrono>

#include "adapters/merge.h"
#include "adapters/peft_files.h"
#include "adapters/pissa.h"
#include "api/model_source.h"
#include "base/error.h"
#include "base/output.h"
#include "checkpoint/gguf_convert.h"
#include "checkpoint/safetensors_writer.h"
#include "device/cpu.h"
#include "device/device.h"
#include "models/convert_weights.h"
#include "models/foreign_model.h"
#include "models/module_tree.h"
#include "models/registry.h"

namespace nibble {
namespace fs = std::filesystem;
namespace {

/// Times a job and fills what every report holds.
class ReportTimer {
 public:
  CheckpointReport finish(int64_t bytes_in, int64_t bytes_out, int64_t tensors, int64_t quantized) const {
    return {bytes_in,
            bytes_out,
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(),
            device::peak_rss_bytes(),
            tensors,
            quantized};
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

DType dtype_or_config(const api::ModelSource& source, std::optional<DType> dtype) {
  if (dtype) return *dtype;
  if (const auto found = models::config_dtype(source.config, source.config_name)) return *found;
  return DType::f32;
}

/// A linear layer's weight (out, in) in f32, as a model of `dtype` has it. Errors: unsupported if it is quantized.
Tensor plain_weight(const api::ModelSource& source, const models::ModelSpec& spec, const std::string& path,
                    DType dtype) {
  const models::ModuleSpec& module = *find_module(spec, path);
  const auto stored =
      models::find_stored(*source.checkpoint, spec, path + ".weight", module.parameters[0].shape, module.is_transposed);
  if (stored.is_quantized())
    fail(ErrorCode::unsupported,
         "{}: an adapter that started as 'pissa' or 'olora' fits unquantized weights, but '{}' is quantized",
         source.config_name, stored.name);
  const Tensor weight = source.checkpoint->get(stored.name).to(dtype).to(DType::f32);
  return module.is_transposed ? weight.transposed() : weight;
}

void require_float(DType dtype) {
  require(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
          "dtype: found {}, expected float32, bfloat16 or float16", name_of(dtype));
}

struct Written {
  int64_t bytes, tensors, quantized;
};

Written write_known(const api::ModelSource& source, const QuantizeOptions& options, const fs::path& directory) {
  models::ModelSpec spec = models::build_spec(source.config, source.config_name);
  models::untie_different(spec, *source.checkpoint);
  const auto plan = models::plan_quantization(spec, options.quantization_config, options.modules);
  const DType dtype = dtype_or_config(source, options.dtype);
  const ops::Backend backend(options.threads, device::parse_device(options.device));
  const std::vector<PlannedTensor> planned = models::plan_quantized(spec, plan, dtype);
  SafetensorsWriter writer(directory, planned, options.max_shard_size_bytes);
  const int64_t quantized =
      models::write_quantized(spec, *source.checkpoint, plan, dtype, backend, writer, options.progress);
  writer.finish();
  api::write_config(models::quantized_config(source.config, spec, plan, dtype), directory);
  return {writer.bytes_written(), static_cast<int64_t>(planned.size()), quantized};
}

Written write_foreign(const api::ModelSource& source, const QuantizeOptions& options, const fs::path& directory) {
  const auto plan = models::plan_foreign(*source.checkpoint, options.quantization_config, options.modules);
  if (options.warning)
    options.warning(
        fmt::format("{}: nibble does not run this architecture; {} linear layers are quantized, told by the "
                    "names of the tensors, {} matrices are left alone",
                    source.config_name, plan.quantized.size(), plan.config.llm_int8_skip_modules->size()));
  const ops::Backend backend(options.threads, device::parse_device(options.device));
  const auto planned = models::plan_foreign_tensors(*source.checkpoint, plan, options.dtype);
  SafetensorsWriter writer(directory, planned, options.max_shard_size_bytes);
  models::write_foreign(*source.checkpoint, plan, options.dtype, backend, writer, options.progress);
  writer.finish();
  Json config = source.config;
  if (options.dtype) config = models::dequantized_config(std::move(config), *options.dtype);  // sets the dtype
  config["quantization_config"] = models::quantization_config_json(plan.config);
  api::write_config(config, directory);
  return {writer.bytes_written(), static_cast<int64_t>(planned.size()), static_cast<int64_t>(plan.quantized.size())};
}

}  // namespace

CheckpointReport quantize_checkpoint(const fs::path& model, const fs::path& out, const QuantizeOptions& options) {
  const ReportTimer timer;
  const BitsAndBytesConfig& config = options.quantization_config;
  config.validate();
  require(config.is_quantizable(), "quantize: neither load_in_4bit nor load_in_8bit is set, expected one");
  const api::ModelSource source = api::open_source(resolve_model(model.string()), options.dtype);
  require(!models::read_quantization_config(source.config, source.config_name),
          "{}: the model is quantized already (quantization_config is present)", source.config_name);
  if (options.dtype) require_float(*options.dtype);
  AtomicDirectory directory(out);
  const Written written = models::find_architecture(source.config, source.config_name)
                              ? write_known(source, options, directory.path())
                              : write_foreign(source, options, directory.path());
  api::copy_companions(source, directory.path());
  directory.commit();
  return timer.finish(source.checkpoint->size_bytes(), written.bytes, written.tensors, written.quantized);
}

CheckpointReport dequantize_checkpoint(const fs::path& model, const fs::path& out, DType dtype, int threads,
                                       const Progress& progress) {
  const ReportTimer timer;
  require_float(dtype);
  const api::ModelSource source = api::open_source(resolve_model(model.string()));
  require(models::read_quantization_config(source.config, source.config_name).has_value(),
          "{}: the model is not quantized (no quantization_config)", source.config_name);
  models::ModelSpec spec = models::build_spec(source.config, source.config_name);
  models::untie_different(spec, *source.checkpoint);
  AtomicDirectory directory(out);
  const ops::Backend backend(threads);
  const std::vector<PlannedTensor> planned = models::plan_dequantized(spec, dtype);
  SafetensorsWriter writer(directory.path(), planned, int64_t{5} << 30);
  const int64_t quantized = models::write_dequantized(spec, spec, *source.checkpoint, dtype, backend, writer, progress);
  writer.finish();
  api::write_config(models::dequantized_config(source.config, dtype), directory.path());
  api::copy_companions(source, directory.path());
  const int64_t bytes_out = writer.bytes_written();
  directory.commit();
  return timer.finish(source.checkpoint->size_bytes(), bytes_out, static_cast<int64_t>(planned.size()), quantized);
}

CheckpointReport merge_checkpoint(const fs::path& model, const fs::path& adapter_path, const fs::path& out,
                                  const MergeOptions& options) {
  const ReportTimer timer;
  if (options.dtype) require_float(*options.dtype);
  const api::ModelSource source = api::open_source(resolve_model(model.string()), options.dtype);
  const auto quantization = models::read_quantization_config(source.config, source.config_name);
  require(!options.requantize || quantization, "requantize: {}: the model is not quantized", source.config_name);
  models::ModelSpec stored = models::build_spec(source.config, source.config_name);
  models::untie_different(stored, *source.checkpoint);
  adapters::Adapter adapter = adapters::read_adapter(stored, adapter_path);
  const ops::Backend backend(options.threads);
  const DType dtype = dtype_or_config(source, options.dtype);
  adapters::take_principal_part_off(
      adapter, backend, [&](const std::string& module) { return plain_weight(source, stored, module, dtype); });
  const models::ParameterEdits edits = adapters::edits_of(adapter, backend);
  const models::ModelSpec spec = adapters::untie_edited(stored, edits);
  AtomicDirectory directory(out);
  const auto plan = options.requantize ? models::plan_of_stored(stored, *source.checkpoint, *quantization)
                                       : models::QuantizationPlan{};
  const std::vector<PlannedTensor> planned =
      options.requantize ? models::plan_quantized(spec, plan, dtype) : models::plan_dequantized(spec, dtype);
  SafetensorsWriter writer(directory.path(), planned, options.max_shard_size_bytes);
  const int64_t quantized = options.requantize
                                ? models::write_requantized(spec, stored, *source.checkpoint, plan, dtype, backend,
                                                            writer, options.progress, edits)
                                : models::write_dequantized(spec, stored, *source.checkpoint, dtype, backend, writer,
                                                            options.progress, &edits);
  writer.finish();
  Json config = options.requantize ? models::quantized_config(source.config, spec, plan, dtype)
                                   : models::dequantized_config(source.config, dtype);
  if (spec.tied.size() != stored.tied.size()) config["tie_word_embeddings"] = false;
  api::write_config(config, directory.path());
  api::copy_companions(source, directory.path());
  directory.commit();
  return timer.finish(source.checkpoint->size_bytes(), writer.bytes_written(), static_cast<int64_t>(planned.size()),
                      options.requantize ? quantized : 0);
}

CheckpointReport convert_gguf(const fs::path& gguf, const fs::path& out, DType dtype, const Progress& progress) {
  const ReportTimer timer;
  require_float(dtype);
  const auto file = GgufFile::open(gguf);
  AtomicDirectory directory(out);
  const int64_t bytes_out = convert_gguf_file(file, directory.path(), dtype, progress);
  int64_t bytes_in = 0;
  for (const auto& tensor : file->tensors()) bytes_in += tensor.size_bytes;
  directory.commit();
  return timer.finish(bytes_in, bytes_out, static_cast<int64_t>(file->tensors().size()), 0);
}

}  // namespace nibble
