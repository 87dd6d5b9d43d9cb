// Encoding by cells: a uniform grid so fine that a cell holds one threshold at most, so one look-up and one comparison
// give the exact code. Works for any code book whose thresholds fall into distinct cells.
#pragma once

#include "kernels/cpu/isa/simd.h"
#include "quant/format.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Cells of [-1, 1]: just under 16 each side of zero, so that |y| slightly above 1 stays inside.
inline constexpr float kCellsPerUnit = 15.999f;

struct CodeCells {
  float threshold[32];  // of cell c, or +inf
  uint8_t code[64];     // code of cell c at c, and of cell c past its threshold at c + 32
  bool is_exact;        // false: two thresholds share a cell, use search_code
};

/// floor(y * kCellsPerUnit) in the five bits of a signed number: cells -16 .. 15 stand at 16 .. 31, 0 .. 15.
NIBBLE_SIMD int cell_of(float y) {
  const float scaled = y * kCellsPerUnit;
  const int whole = static_cast<int>(scaled);
  return (whole - (scaled < static_cast<float>(whole) ? 1 : 0)) & 31;
}

NIBBLE_SIMD uint8_t code_by_cell(const CodeCells& cells, float y) {
  const int cell = cell_of(y);
  return cells.code[cell + (y > cells.threshold[cell] ? 32 : 0)];
}

NIBBLE_SIMD float next_above(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return __builtin_bit_cast(float, x < 0 ? bits - 1 : bits + 1);
}

/// The definition: counts thresholds.
NIBBLE_SIMD uint8_t search_code(const quant::CodeBook4Bit& book, float y) {
  if (y != y) return book.nan_code;
  const float* thresholds = reinterpret_cast<const float*>(&book.thresholds);
  int rank = 0;
  for (int i = 0; i < 15; ++i) rank += y > thresholds[i] ? 1 : 0;
  return reinterpret_cast<const uint8_t*>(&book.code_of_rank)[rank];
}

/// A cell is an interval, because cell_of never decreases: a threshold inside one splits it, and counts in full for all
/// cells above it. One at a cell's very end splits nothing.
NIBBLE_SIMD CodeCells make_code_cells(const quant::CodeBook4Bit& book) {
  const float* thresholds = reinterpret_cast<const float*>(&book.thresholds);
  const uint8_t* code_of_rank = reinterpret_cast<const uint8_t*>(&book.code_of_rank);
  CodeCells cells;
  cells.is_exact = true;
  for (int cell = 0; cell < 32; ++cell) {
    const int position = cell ^ 16;  // ascending in y
    int below = 0, inside = 0;
    cells.threshold[cell] = __builtin_inff();
    for (int i = 0; i < 15; ++i) {
      const int first = cell_of(thresholds[i]) ^ 16;
      if (first < position) ++below;
      if (first != position || (cell_of(next_above(thresholds[i])) ^ 16) != position) continue;
      cells.threshold[cell] = thresholds[i];
      ++inside;
    }
    if (inside > 1) cells.is_exact = false;
    cells.code[cell] = code_of_rank[below];
    cells.code[cell + 32] = code_of_rank[inside ? below + 1 : below];
  }
  return cells;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
