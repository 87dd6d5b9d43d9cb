// Products with the matrix run through kernels; what is left is as thin as the rank.
#include "adapters/loftq.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "models/layer.h"
#include "models/module_tree.h"
#include "nn/dora.h"

namespace nibble::adapters {
namespace {

constexpr int64_t kMore = 10;  // vectors beyond the rank
constexpr int kRounds = 4;

/// Vectors as rows.
using Rows = std::vector<std::vector<double>>;

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// Gram and Schmidt's, twice, since once is not enough in finite precision. Vectors that vanish become zero.
void make_orthonormal(Rows& rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const double before = std::sqrt(dot(rows[i], rows[i]));
    for (int pass = 0; pass < 2; ++pass)
      for (size_t j = 0; j < i; ++j) {
        const double part = dot(rows[i], rows[j]);
        for (size_t c = 0; c < rows[i].size(); ++c) rows[i][c] -= part * rows[j][c];
      }
    const double length = std::sqrt(dot(rows[i], rows[i]));
    const double factor = length > 1e-6 * before ? 1 / length : 0;
    for (double& value : rows[i]) value *= factor;
  }
}

Tensor to_tensor(const ops::Backend& backend, const Rows& rows) {
  Tensor tensor(DType::f32, {static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size())});
  auto* out = tensor.as<float>();
  for (const auto& row : rows)
    for (const double value : row) *out++ = static_cast<float>(value);
  return backend.to_device(tensor);
}

Rows to_rows(const ops::Backend& backend, const Tensor& x) {
  const Tensor host = backend.to_host(x);
  const auto* in = host.as<float>();
  Rows rows(static_cast<size_t>(x.dim(0)), std::vector<double>(static_cast<size_t>(x.dim(1))));
  for (auto& row : rows)
    for (double& value : row) value = static_cast<double>(*in++);
  return rows;
}

/// Each row times the matrix's transpose.
Rows times_transpose(const ops::Backend& backend, const Tensor& matrix, const Rows& rows) {
  const Tensor x = to_tensor(backend, rows);
  Tensor y = backend.empty(DType::f32, {x.dim(0), matrix.dim(0)});
  const kernels::MatmulDenseJob job{matrix.data(), DType::f32, matrix.dim(0), {y.as<float>(), matrix.dim(0)}};
  backend.kernels().matmul_dense(backend.context(), {x.as<float>(), x.dim(0), matrix.dim(1), DType::f32}, &job, 1);
  return to_rows(backend, y);
}

/// Each row times the matrix.
Rows times(const ops::Backend& backend, const Tensor& matrix, const Rows& rows) {
  const Tensor x = to_tensor(backend, rows);
  Tensor y = backend.empty(DType::f32, {x.dim(0), matrix.dim(1)});
  backend.kernels().input_gradient(backend.context(), {x.as<float>(),
                                                       matrix.dim(0),
                                                       x.dim(0),
                                                       matrix.dim(0),
                                                       matrix.dim(1),
                                                       {kernels::WeightView::Kind::dense, matrix.data(), DType::f32},
                                                       y.as<float>(),
                                                       false});
  return to_rows(backend, y);
}

/// Eigenvectors (rows) and values of a symmetric matrix by Jacobi's rotations, the largest first.
struct Eigen {
  std::vector<double> values;
  Rows vectors;
};
Eigen eigen_of(Rows m) {
  const size_t n = m.size();
  Rows v(n, std::vector<double>(n));
  for (size_t i = 0; i < n; ++i) v[i][i] = 1;
  for (int sweep = 0; sweep < 30; ++sweep)
    for (size_t p = 0; p + 1 < n; ++p)
      for (size_t q = p + 1; q < n; ++q) {
        if (std::abs(m[p][q]) <= 1e-15 * std::sqrt(std::abs(m[p][p] * m[q][q]))) continue;
        const double theta = (m[q][q] - m[p][p]) / (2 * m[p][q]);
        const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (size_t k = 0; k < n; ++k) {
          const double a = m[k][p], b = m[k][q];
          m[k][p] = c * a - s * b;
          m[k][q] = s * a + c * b;
        }
        for (size_t k = 0; k < n; ++k) {
          const double a = m[p][k], b = m[q][k];
          m[p][k] = c * a - s * b;
          m[q][k] = s * a + c * b;
          const double x = v[p][k], y = v[q][k];
          v[p][k] = c * x - s * y;
          v[q][k] = s * x + c * y;
        }
      }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return m[a][a] > m[b][b]; });
  Eigen result;
  for (const size_t i : order) {
    result.values.push_back(std::max(0.0, m[i][i]));
    result.vectors.push_back(v[i]);
  }
  return result;
}

}  // namespace

Factors factorize(const ops::Backend& backend, const Tensor& matrix, int64_t rank, uint64_t seed) {
  const int64_t rows = matrix.dim(0), cols = matrix.dim(1), count = std::min(rank + kMore, std::min(rows, cols));
  Random random(seed);
  Rows inputs(static_cast<size_t>(count), std::vector<double>(static_cast<size_t>(cols)));
  for (auto& row : inputs)
    for (double& value : row) value = random.normal();
  Rows outputs;
  for (int round = 0; round < kRounds; ++round) {
    outputs = times_transpose(backend, matrix, inputs);
    make_orthonormal(outputs);
    inputs = times(backend, matrix, outputs);  // the sketch; in the last round Q^T M
    if (round + 1 < kRounds) make_orthonormal(inputs);
  }
  Rows gram(inputs.size(), std::vector<double>(inputs.size()));
  for (size_t i = 0; i < inputs.size(); ++i)
    for (size_t j = 0; j < inputs.size(); ++j) gram[i][j] = dot(inputs[i], inputs[j]);
  const Eigen eigen = eigen_of(std::move(gram));
  Factors factors{Tensor(DType::f32, {rows, rank}), Tensor(DType::f32, {rank, cols})};
  std::fill_n(factors.left.as<float>(), factors.left.count(), 0.0f);
  std::fill_n(factors.right.as<float>(), factors.right.count(), 0.0f);
  for (int64_t k = 0; k < std::min(rank, count); ++k) {
    const double root = std::pow(eigen.values[static_cast<size_t>(k)], 0.25);  // of the singular value
    if (root <= 0) continue;
    const auto mix = [&](const Rows& from, int64_t at) {
      double sum = 0;
      for (size_t i = 0; i < from.size(); ++i)
        sum += eigen.vectors[static_cast<size_t>(k)][i] * from[i][static_cast<size_t>(at)];
      return sum;
    };
    for (int64_t r = 0; r < rows; ++r)
      factors.left.as<float>()[r * rank + k] = static_cast<float>(mix(outputs, r) * root);
    for (int64_t c = 0; c < cols; ++c)
      factors.right.as<float>()[k * cols + c] = static_cast<float>(mix(inputs, c) / root);
  }
  return factors;
}

void start_from_quantization_error(Adapter& adapter, const models::Decoder& model, const Checkpoint& original,
                                   uint64_t seed) {
  const ops::Backend& backend = model.backend();
  for (AdapterLayer& layer : adapter.layers) {
    const models::ModuleSpec& module = *find_module(model.spec(), layer.module);
    const nn::Linear held = models::bind_linear(backend, model.spec(), model.weights(), layer.module);
    const auto stored = models::find_stored(original, model.spec(), layer.module + ".weight",
                                            module.parameters[0].shape, module.is_transposed);
    require(!stored.is_quantized() && !std::holds_alternative<nn::DenseWeight>(held.weight),
            "init_lora_weights: loftq starts from the error of quantization, but '{}' is {}", layer.module,
            stored.is_quantized() ? "quantized in the checkpoint already: load the original with load_in_4bit"
                                  : "not quantized: load the model with load_in_4bit or load_in_8bit");
    Tensor weight = original.get(stored.name).to(model.weights().dtype()).to(DType::f32);
    if (module.is_transposed) weight = weight.transposed();
    const Tensor quantized = backend.to_host(nn::plain_weight(backend, held));
    Tensor error(DType::f32, weight.shape());
    for (int64_t i = 0; i < error.count(); ++i) error.as<float>()[i] = weight.as<float>()[i] - quantized.as<float>()[i];
    Factors factors = factorize(backend, backend.to_device(error), layer.lora.a->value.dim(0), seed);
    const float share = 1 / std::sqrt(layer.lora.scale);
    for (Tensor* side : {&factors.left, &factors.right})
      for (int64_t i = 0; i < side->count(); ++i) side->as<float>()[i] *= share;
    layer.lora.a->value = std::move(factors.right);
    layer.lora.b->value = std::move(factors.left);
    original.release(stored.name);
  }
}

}  // namespace nibble::adapters
