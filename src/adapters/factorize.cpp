// Products with the matrix run through kernels; what is left is as thin as the rank, and Eigen's.
#include "adapters/factorize.h"

#include <Eigen/QR>
#include <Eigen/SVD>
#include <algorithm>
#include <cmath>

#include "base/random.h"

namespace nibble::adapters {
namespace {

constexpr int64_t kMore = 10;    // vectors beyond the rank
constexpr double kStill = 1e-4;  // a space that turns by less between two looks has settled
constexpr int kRoundsPerLook = 4, kLooks = 50;
constexpr double kNothing = 1e-6;  // of the largest singular value: less is rounding, and taken for 0

using Vectors = Eigen::MatrixXd;  // as columns
using FloatRows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Vectors orthonormal(const Vectors& x) {
  return Eigen::HouseholderQR<Vectors>(x).householderQ() * Vectors::Identity(x.rows(), x.cols());
}

/// (vectors, elements).
Tensor to_tensor(const ops::Backend& backend, const Vectors& x) {
  Tensor tensor(DType::f32, {x.cols(), x.rows()});
  Eigen::Map<FloatRows>(tensor.as<float>(), x.cols(), x.rows()) = x.transpose().cast<float>();
  return backend.to_device(tensor);
}

Vectors to_vectors(const ops::Backend& backend, const Tensor& x) {
  const Tensor host = backend.to_host(x);
  return Eigen::Map<const FloatRows>(host.as<float>(), x.dim(0), x.dim(1)).transpose().cast<double>();
}

/// The matrix times each vector.
Vectors times(const ops::Backend& backend, const Tensor& matrix, const Vectors& vectors) {
  const Tensor x = to_tensor(backend, vectors);
  Tensor y = backend.empty(DType::f32, {x.dim(0), matrix.dim(0)});
  const kernels::MatmulDenseJob job{matrix.data(), DType::f32, matrix.dim(0), {y.as<float>(), matrix.dim(0)}};
  backend.kernels().matmul_dense(backend.context(), {x.as<float>(), x.dim(0), matrix.dim(1), DType::f32}, &job, 1);
  return to_vectors(backend, y);
}

/// The matrix's transpose times each vector.
Vectors transpose_times(const ops::Backend& backend, const Tensor& matrix, const Vectors& vectors) {
  const Tensor x = to_tensor(backend, vectors);
  Tensor y = backend.empty(DType::f32, {x.dim(0), matrix.dim(1)});
  backend.kernels().input_gradient(backend.context(), {x.as<float>(),
                                                       matrix.dim(0),
                                                       x.dim(0),
                                                       matrix.dim(0),
                                                       matrix.dim(1),
                                                       {kernels::WeightView::Kind::dense, matrix.data(), DType::f32},
                                                       y.as<float>(),
                                                       false});
  return to_vectors(backend, y);
}

Vectors random_vectors(int64_t size, int64_t count, uint64_t seed) {
  Random random(seed);
  return Vectors::NullaryExpr(size, count, [&](Eigen::Index, Eigen::Index) { return random.normal(); });
}

/// Q, orthonormal vectors near the matrix M's first left singular ones, and M' Q.
struct Sketch {
  Vectors outputs, inputs;
};
Sketch iterate(const ops::Backend& backend, const Tensor& matrix, Vectors inputs, int rounds) {
  Sketch sketch{{}, std::move(inputs)};
  for (int round = 0; round < rounds; ++round) {
    if (round > 0) sketch.inputs = orthonormal(sketch.inputs);
    sketch.outputs = orthonormal(times(backend, matrix, sketch.inputs));
    sketch.inputs = transpose_times(backend, matrix, sketch.outputs);
  }
  return sketch;
}

/// The largest singular values and their vectors as the sketch has them; zeros where it has less.
struct Singular {
  Eigen::VectorXd values;
  Vectors left, right;
};
Singular singular_of(const Sketch& sketch, int64_t rank) {
  const Eigen::HouseholderQR<Vectors> qr(sketch.inputs);
  const Eigen::Index count = sketch.inputs.cols(), kept = std::min<Eigen::Index>(rank, count);
  const Vectors triangle = qr.matrixQR().topRows(count).triangularView<Eigen::Upper>();
  const Eigen::JacobiSVD<Vectors> svd(triangle, Eigen::ComputeFullU | Eigen::ComputeFullV);
  Singular singular{Eigen::VectorXd::Zero(rank), Vectors::Zero(sketch.outputs.rows(), rank),
                    Vectors::Zero(sketch.inputs.rows(), rank)};
  singular.values.head(kept) = svd.singularValues().head(kept);
  singular.left.leftCols(kept) = sketch.outputs * svd.matrixV().leftCols(kept);
  singular.right.topRows(count).leftCols(kept) = svd.matrixU().leftCols(kept);
  singular.right = qr.householderQ() * singular.right;
  const double least = kNothing * singular.values.maxCoeff();
  singular.values = (singular.values.array() > least).select(singular.values, 0);
  return singular;
}

Factors factors_of(const Singular& singular) {
  const Eigen::Index rank = singular.values.size(), rows = singular.left.rows(), cols = singular.right.rows();
  const Eigen::VectorXd roots = singular.values.cwiseSqrt();
  Factors factors{Tensor(DType::f32, {rows, rank}), Tensor(DType::f32, {rank, cols})};
  Eigen::Map<FloatRows>(factors.left.as<float>(), rows, rank) = (singular.left * roots.asDiagonal()).cast<float>();
  Eigen::Map<FloatRows>(factors.right.as<float>(), rank, cols) =
      (singular.right * roots.asDiagonal()).transpose().cast<float>();
  return factors;
}

/// The sine of the angle between two spaces of orthonormal vectors, in the mean of squares.
double turn_between(const Vectors& a, const Vectors& b) {
  const double inside = (a.transpose() * b).squaredNorm();
  return std::sqrt(std::max(0.0, 1 - inside / static_cast<double>(a.cols())));
}

}  // namespace

Factors factorize(const ops::Backend& backend, const Tensor& matrix, int64_t rank, uint64_t seed, int rounds) {
  const int64_t count = std::min({rank + kMore, matrix.dim(0), matrix.dim(1)});
  return factors_of(singular_of(iterate(backend, matrix, random_vectors(matrix.dim(1), count, seed), rounds), rank));
}

Factors factorize_settled(const ops::Backend& backend, const Tensor& matrix, int64_t rank, uint64_t seed) {
  const int64_t count = std::min({2 * rank + kMore, matrix.dim(0), matrix.dim(1)});
  Sketch sketch{{}, random_vectors(matrix.dim(1), count, seed)};
  Singular singular;
  for (int look = 0; look < kLooks; ++look) {
    const Vectors before = std::move(singular.right);
    if (look > 0) sketch.inputs = orthonormal(sketch.inputs);
    sketch = iterate(backend, matrix, std::move(sketch.inputs), kRoundsPerLook);
    singular = singular_of(sketch, rank);
    if (look > 0 && turn_between(singular.right, before) < kStill) break;
  }
  return factors_of(singular);
}

Factors factorize_first_columns(const ops::Backend& backend, const Tensor& matrix, int64_t rank) {
  const int64_t rows = matrix.dim(0), cols = matrix.dim(1);
  const Tensor host = backend.to_host(matrix);
  const Eigen::Map<const FloatRows> all(host.as<float>(), rows, cols);
  const Vectors basis = orthonormal(all.leftCols(rank).cast<double>());
  Factors factors{Tensor(DType::f32, {rows, rank}), Tensor(DType::f32, {rank, cols})};
  Eigen::Map<FloatRows>(factors.left.as<float>(), rows, rank) = basis.cast<float>();
  Eigen::Map<FloatRows>(factors.right.as<float>(), rank, cols) =
      transpose_times(backend, matrix, basis).transpose().cast<float>();
  return factors;
}

}  // namespace nibble::adapters
