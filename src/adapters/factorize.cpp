// Products with the matrix run through kernels; what is left is as thin as the rank.
#include "adapters/factorize.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/random.h"

namespace nibble::adapters {
namespace {

constexpr int64_t kMore = 10;    // vectors beyond the rank
constexpr double kStill = 1e-4;  // a space that turns by less between two looks has settled
constexpr int kRoundsPerLook = 4, kLooks = 50;

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

Rows random_rows(int64_t count, int64_t cols, uint64_t seed) {
  Random random(seed);
  Rows rows(static_cast<size_t>(count), std::vector<double>(static_cast<size_t>(cols)));
  for (auto& row : rows)
    for (double& value : row) value = random.normal();
  return rows;
}

/// Q, orthonormal rows near the matrix's first left singular vectors, and Q M.
struct Sketch {
  Rows outputs, inputs;
};
Sketch iterate(const ops::Backend& backend, const Tensor& matrix, Rows inputs, int rounds) {
  Sketch sketch{{}, std::move(inputs)};
  for (int round = 0; round < rounds; ++round) {
    if (round > 0) make_orthonormal(sketch.inputs);
    sketch.outputs = times_transpose(backend, matrix, sketch.inputs);
    make_orthonormal(sketch.outputs);
    sketch.inputs = times(backend, matrix, sketch.outputs);
  }
  return sketch;
}

/// Singular values and vectors (rows), the largest first, as the sketch has them; zeros where it has less.
struct Singular {
  std::vector<double> values;
  Rows left, right;
};
Singular singular_of(const Sketch& sketch, int64_t rank) {
  const size_t count = sketch.inputs.size();
  Rows gram(count, std::vector<double>(count));
  for (size_t i = 0; i < count; ++i)
    for (size_t j = 0; j < count; ++j) gram[i][j] = dot(sketch.inputs[i], sketch.inputs[j]);
  const Eigen eigen = eigen_of(std::move(gram));
  const auto mix = [&](const Rows& from, size_t k, double factor) {
    std::vector<double> sum(from[0].size());
    for (size_t i = 0; i < from.size(); ++i)
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += factor * eigen.vectors[k][i] * from[i][c];
    return sum;
  };
  Singular singular;
  for (size_t k = 0; k < static_cast<size_t>(rank); ++k) {
    const double value = k < count ? std::sqrt(eigen.values[k]) : 0;
    singular.values.push_back(value);
    singular.left.push_back(mix(sketch.outputs, k < count ? k : 0, value > 0 ? 1 : 0));
    singular.right.push_back(mix(sketch.inputs, k < count ? k : 0, value > 0 ? 1 / value : 0));
  }
  return singular;
}

Factors factors_of(const Singular& singular) {
  const auto rank = static_cast<int64_t>(singular.values.size());
  const auto rows = static_cast<int64_t>(singular.left[0].size()),
             cols = static_cast<int64_t>(singular.right[0].size());
  Factors factors{Tensor(DType::f32, {rows, rank}), Tensor(DType::f32, {rank, cols})};
  for (int64_t k = 0; k < rank; ++k) {
    const auto at = static_cast<size_t>(k);
    const double root = std::sqrt(singular.values[at]);
    for (int64_t r = 0; r < rows; ++r)
      factors.left.as<float>()[r * rank + k] = static_cast<float>(singular.left[at][static_cast<size_t>(r)] * root);
    for (int64_t c = 0; c < cols; ++c)
      factors.right.as<float>()[k * cols + c] = static_cast<float>(singular.right[at][static_cast<size_t>(c)] * root);
  }
  return factors;
}

/// The sine of the angle between two spaces of orthonormal rows, in the mean of squares.
double turn_between(const Rows& a, const Rows& b) {
  double inside = 0;
  for (const auto& x : a)
    for (const auto& y : b) inside += std::pow(dot(x, y), 2);
  return std::sqrt(std::max(0.0, 1 - inside / static_cast<double>(a.size())));
}

}  // namespace

Factors factorize(const ops::Backend& backend, const Tensor& matrix, int64_t rank, uint64_t seed, int rounds) {
  const int64_t count = std::min({rank + kMore, matrix.dim(0), matrix.dim(1)});
  return factors_of(singular_of(iterate(backend, matrix, random_rows(count, matrix.dim(1), seed), rounds), rank));
}

Factors factorize_settled(const ops::Backend& backend, const Tensor& matrix, int64_t rank, uint64_t seed) {
  const int64_t count = std::min({2 * rank + kMore, matrix.dim(0), matrix.dim(1)});
  Sketch sketch{{}, random_rows(count, matrix.dim(1), seed)};
  Singular singular;
  for (int look = 0; look < kLooks; ++look) {
    const Rows before = std::move(singular.right);
    if (look > 0) make_orthonormal(sketch.inputs);
    sketch = iterate(backend, matrix, std::move(sketch.inputs), kRoundsPerLook);
    singular = singular_of(sketch, rank);
    if (look > 0 && turn_between(singular.right, before) < kStill) break;
  }
  return factors_of(singular);
}

}  // namespace nibble::adapters
