// How text is generated: the options of transformers' generate() that nibble honours, with its names and defaults.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct GenerationConfig {
  int64_t max_new_tokens = 20;  // of a row; fewer where it fills the model's context
  bool do_sample = false;       // false: the most likely token (or beams); the lower id wins a tie
  float temperature = 1.0f;
  int64_t top_k = 50;  // 0: off
  float top_p = 1.0f;  // (0, 1]
  float min_p = 0.0f;  // [0, 1)
  float repetition_penalty = 1.0f;
  int64_t num_beams = 1;
  float length_penalty = 1.0f;          // beams only
  bool early_stopping = false;          // beams only
  std::vector<std::string> stop{};      // generation ends where one of these appears; it is not part of the text
  std::vector<int32_t> eos_token_id{};  // empty: the model's
  std::optional<int32_t> pad_token_id{};
  uint64_t seed = 0;
  /// A prompt row's tokens do not depend on how many rows run beside it.
  bool batch_invariant = false;

  /// Every option by itself. Errors: invalid_argument naming it; unsupported for sampling with beams.
  void validate() const;
};

/// Called after each new token of row `row` with the text that became certain (may be empty while a character is
/// incomplete). Return false to stop that row.
using TokenCallback = std::function<bool(int64_t row, int32_t token, std::string_view text)>;

enum class StopReason : uint8_t { length, eos, stop_string, callback };

struct GenerationTimes {
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;  // of new_tokens - 1 steps
};

}  // namespace nibble
