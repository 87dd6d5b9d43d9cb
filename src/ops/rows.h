// A function of rows that do not depend on each other, a chunk of rows at a time.
#pragma once

#include <functional>

#include "autograd/tape.h"
#include "ops/backend.h"

namespace nibble::ops {

/// y = f(tape, x) for every `chunk` rows of x (rows, cols), keeping x alone: the way back runs f again, a chunk at a
/// time, so that what f makes between exists for one chunk only. f must give as many rows as it gets, of x's type, and
/// the same result each time; `first` is the chunk's first row. `cols`: of y. `needs_value`: false where y was computed
/// before and only the way back is wanted; then y has no value.
using RowsFunction = std::function<autograd::Var(autograd::Tape&, const autograd::Var& x, int64_t first)>;
autograd::Var checkpoint_rows(autograd::Tape& tape, const Backend& backend, const autograd::Var& x, int64_t chunk,
                              int64_t cols, bool needs_value, RowsFunction f);

}  // namespace nibble::ops
