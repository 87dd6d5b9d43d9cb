// Text on its way through the pipeline: one buffer, cut into pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// A part of the buffer. Pieces with an id are added tokens: later steps leave them alone.
struct Piece {
  size_t begin;
  size_t end;
  int32_t id = -1;
  bool at_start = false;  // its first character comes from the first character of the input
};

struct Pieces {
  std::string text;
  std::vector<Piece> pieces;

  std::string_view view(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }

  /// Cuts each piece without id: cut(text, add) calls add(begin, end) with offsets inside the piece, in order.
  template <typename Cut>
  void split(Cut&& cut) {
    std::vector<Piece> result;
    result.reserve(pieces.size());
    for (const Piece& piece : pieces) {
      if (piece.id >= 0) {
        result.push_back(piece);
        continue;
      }
      cut(view(piece), [&](size_t begin, size_t end) {
        if (begin < end) result.push_back({piece.begin + begin, piece.begin + end, -1, piece.at_start && begin == 0});
      });
    }
    pieces.swap(result);
  }

  /// Rewrites each piece without id: rewrite(text, at_start, out) appends the new text. Emptied pieces go.
  template <typename Rewrite>
  void rewrite(Rewrite&& rewrite) {
    std::string result;
    result.reserve(text.size() + text.size() / 4);
    std::vector<Piece> kept;
    kept.reserve(pieces.size());
    for (Piece piece : pieces) {
      const std::string_view old = view(piece);
      const size_t begin = result.size();
      if (piece.id >= 0)
        result.append(old);
      else
        rewrite(old, piece.at_start, result);
      piece.begin = begin;
      piece.end = result.size();
      if (piece.id >= 0 || piece.begin < piece.end) kept.push_back(piece);
    }
    text.swap(result);
    pieces.swap(kept);
  }
};

}  // namespace nibble
