// W + scale * B A, by the kernel that multiplies with a weight's rows.
#include "adapters/merge.h"

#include <cmath>

namespace nibble::adapters {
namespace {

constexpr std::string_view kWeight = ".weight";

const nn::Lora* update_of(const Adapter& adapter, std::string_view name) {
  return name.ends_with(kWeight) ? adapter.find(name.substr(0, name.size() - kWeight.size())) : nullptr;
}

Tensor scaled(const Tensor& x, float factor) {
  Tensor copy(DType::f32, x.shape());
  for (int64_t i = 0; i < x.count(); ++i) copy.as<float>()[i] = factor * x.as<float>()[i];
  return copy;
}

/// Brings the rows of `weight` to DoRA's lengths.
void set_row_lengths(const Tensor& lengths, Tensor& weight) {
  const int64_t cols = weight.dim(1);
  for (int64_t r = 0; r < weight.dim(0); ++r) {
    float* row = weight.as<float>() + r * cols;
    double squares = 0;
    for (int64_t c = 0; c < cols; ++c) squares += static_cast<double>(row[c]) * static_cast<double>(row[c]);
    const auto factor = static_cast<float>(static_cast<double>(lengths.as<float>()[r]) / std::sqrt(squares));
    for (int64_t c = 0; c < cols; ++c) row[c] *= factor;
  }
}

void add_update(const ops::Backend& backend, const nn::Lora& lora, Tensor& weight) {
  const int64_t rank = lora.a->value.dim(0), rows = weight.dim(0), cols = weight.dim(1);
  const Tensor b = scaled(lora.b->value, lora.scale);
  backend.kernels().input_gradient(backend.context(),
                                   {b.as<float>(),
                                    rank,
                                    rows,
                                    rank,
                                    cols,
                                    {kernels::WeightView::Kind::dense, lora.a->value.data(), DType::f32},
                                    weight.as<float>(),
                                    true});
  if (lora.magnitude) set_row_lengths(lora.magnitude->value, weight);
}

}  // namespace

models::ParameterEdits edits_of(const Adapter& adapter, const ops::Backend& backend) {
  return {[&adapter](const std::string& name) {
            return update_of(adapter, name) != nullptr || adapter.find_parameter(name) != nullptr;
          },
          [&adapter, &backend](const std::string& name, Tensor& value) {
            if (const autograd::Var trained = adapter.find_parameter(name)) value = trained->value;
            if (const nn::Lora* lora = update_of(adapter, name)) add_update(backend, *lora, value);
          }};
}

models::ModelSpec untie_edited(models::ModelSpec spec, const models::ParameterEdits& edits) {
  std::erase_if(spec.tied, [&](const auto& tie) { return edits.has(tie.first) || edits.has(tie.second); });
  return spec;
}

}  // namespace nibble::adapters
