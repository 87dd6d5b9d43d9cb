// Parameters under the names that the architecture's files have, each in the type it has there.
#include "adapters/whole_files.h"

#include "base/error.h"
#include "base/output.h"
#include "checkpoint/safetensors_writer.h"
#include "models/convert_weights.h"
#include "models/module_tree.h"

namespace nibble::adapters {
namespace {

/// Conv1D: files hold the weight as (in, out).
bool is_transposed(const models::ModelSpec& spec, const std::string& name) {
  const size_t dot = name.rfind('.');
  const models::ModuleSpec* module = find_module(spec, name.substr(0, dot));
  return module && module->is_transposed && name.substr(dot) == ".weight";
}

}  // namespace

void write_whole(const Adapter& adapter, const models::Decoder& model, DType dtype,
                 const std::filesystem::path& directory) {
  const models::ModelSpec& spec = model.spec();
  const std::vector<PlannedTensor> planned = models::plan_dequantized(spec, dtype);
  if (planned.size() != adapter.parameters.size())
    fail(ErrorCode::internal, "a whole model of {} tensors, expected {}", adapter.parameters.size(), planned.size());
  SafetensorsWriter writer(directory, planned, int64_t{5} << 30);
  for (size_t i = 0; i < planned.size(); ++i) {  // both in the order of the module tree
    const TrainedParameter& parameter = adapter.parameters[i];
    const Tensor& value = parameter.value->value;
    const Tensor tensor = is_transposed(spec, parameter.name) ? value.transposed() : value;
    writer.write(planned[i].name, tensor.to(planned[i].dtype).bytes());
  }
  writer.finish();
  write_file(directory / "config.json", models::dequantized_config(model.config(), dtype).dump(2) + "\n");
}

Adapter read_whole(const models::ModelSpec& spec, const std::filesystem::path& directory) {
  const auto checkpoint = Checkpoint::open(directory);
  Adapter adapter;
  adapter.is_whole = true;
  models::for_each_module(spec, [&](const std::string& path, const models::ModuleSpec& module) {
    for (const models::ParameterSpec& parameter : module.parameters) {
      const std::string name = models::join(path, parameter.name);
      if (models::resolve_tied(spec, name) != name) continue;
      const auto stored = models::find_stored(*checkpoint, spec, name, parameter.shape, false);
      const Tensor value = checkpoint->get(stored.name).to(DType::f32);
      adapter.parameters.push_back(
          {name, autograd::parameter(is_transposed(spec, name) ? value.transposed() : value), false});
    }
  });
  return adapter;
}

}  // namespace nibble::adapters
