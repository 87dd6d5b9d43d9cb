// Rotary position embedding: the inverse frequencies of each scaling rule and the angles of a run of tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble::nn {

enum class RopeKind : uint8_t { plain, linear, dynamic, llama3, yarn, longrope };

/// One `rope_parameters` entry of a config, defaults filled in; the names are its keys.
struct RopeSpec {
  RopeKind kind = RopeKind::plain;
  double theta = 10000;
  int64_t rotary_dim = 0;
  bool interleaved = false;
  int64_t max_position_embeddings = 2048;
  int64_t original_max_position_embeddings = 2048;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  bool truncate = true;                              // yarn
  double attention_factor = 1;                       // yarn, longrope: scales cos and sin
  std::vector<double> short_factor, long_factor;     // longrope (rotary_dim / 2)
};

/// Angles by position. Immutable.
class Rope {
 public:
  explicit Rope(RopeSpec spec);

  const RopeSpec& spec() const { return spec_; }
  /// Writes cos and sin (tokens, rotary_dim / 2) of positions first .. first + tokens of a sequence whose length will
  /// be `length` after this call; dynamic and longrope change their frequencies with it.
  void fill(int64_t first, int64_t tokens, int64_t length, float* cos, float* sin) const;

 private:
  std::vector<float> frequencies(int64_t length) const;
  RopeSpec spec_;
  std::vector<float> frequencies_;  // (rotary_dim / 2), of the original length
};

}  // namespace nibble::nn
