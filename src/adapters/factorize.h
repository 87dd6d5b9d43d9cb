// The nearest product of two thin matrices, by subspace iteration from a random start (Halko et al., 2011,
// https://arxiv.org/abs/0909.4061), made orthonormal in double.
#pragma once

#include "ops/backend.h"

namespace nibble::adapters {

/// left (rows, rank) . right (rank, cols), near the best such product for a matrix (rows, cols) in f32. Both have the
/// square roots of the singular values; what a matrix lacks in rank is zero.
struct Factors {
  Tensor left, right;  // f32, in main memory
};
/// With `rounds` there and back, on `rank` + 10 vectors.
Factors factorize(const ops::Backend& backend, const Tensor& matrix, int64_t rank, uint64_t seed, int rounds = 4);
/// With as many as it takes until the space of the right vectors turns no more, on 2 `rank` + 10 vectors; at most 200.
Factors factorize_settled(const ops::Backend& backend, const Tensor& matrix, int64_t rank, uint64_t seed);

/// left, an orthonormal basis of the matrix's first `rank` columns, and right, its part along them: the product is what
/// the first columns and rows of a QR decomposition give.
Factors factorize_first_columns(const ops::Backend& backend, const Tensor& matrix, int64_t rank);

}  // namespace nibble::adapters
