// Timing of contenders side by side: rounds are interleaved, so that noise of the machine hits all of them alike.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"

namespace nibble::bench {

struct Contender {
  std::string name;
  std::function<void()> run;  // one sample
  double work = 1;            // calls in a sample
};

/// Microseconds of one call.
struct Timing {
  std::string name;
  double min_us, median_us, spread;  // spread: (90th percentile - 10th percentile) / median
};

/// Takes `rounds` samples of each contender, one of each in turn, after one that is not counted.
std::vector<Timing> race(const std::vector<Contender>& contenders, int rounds);

/// Value of `--name VALUE` or the default.
std::string option(int argc, char** argv, const std::string& name, const std::string& otherwise);

/// What every program takes: --threads N (0: all), --rounds N, --only TEXT (in a contender's name), --json FILE and
/// --bitsandbytes LIBRARY (or the environment's BITSANDBYTES_LIBRARY).
struct Options {
  int threads, rounds;
  std::string only, json, bitsandbytes;
};
Options parse_options(int argc, char** argv, int rounds);

Json to_json(const Timing& timing);

}  // namespace nibble::bench
