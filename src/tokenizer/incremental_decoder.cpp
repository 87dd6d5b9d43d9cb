// Pending ids are decoded again with each new one until the decoder allows a cut behind them.
#include "tokenizer/incremental_decoder.h"

namespace nibble {

std::string IncrementalDecoder::push(int32_t id) {
  pending_.push_back(id);
  DecodedRun run;
  try {
    run = tokenizer_.decode_run(pending_, options_, {first_, false});
  } catch (...) {
    pending_.pop_back();
    throw;
  }
  // A run without text may still leave its mark on what follows, such as a first space to be dropped.
  if (!run.can_cut || run.text.empty()) return {};
  pending_.clear();
  first_ = false;
  return run.text;
}

std::string IncrementalDecoder::finish() {
  std::string text = tokenizer_.decode_run(pending_, options_, {first_, true}).text;
  pending_.clear();
  first_ = true;
  return text;
}

}  // namespace nibble
