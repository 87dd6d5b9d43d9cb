// Interleaved rounds and their statistics.
#include "bench/harness.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

namespace nibble::bench {
namespace {

double seconds_of(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::vector<Timing> race(const std::vector<Contender>& contenders, int rounds) {
  std::vector<std::vector<double>> samples(contenders.size());
  for (int round = -1; round < rounds; ++round)
    for (size_t i = 0; i < contenders.size(); ++i) {
      // Idle threads of the contender before spin for a while: let them go to sleep.
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const double seconds = seconds_of(contenders[i].run);
      if (round >= 0) samples[i].push_back(seconds * 1e6 / contenders[i].work);
    }
  std::vector<Timing> timings;
  for (size_t i = 0; i < contenders.size(); ++i) {
    auto& s = samples[i];
    std::sort(s.begin(), s.end());
    const double median = s[s.size() / 2];
    timings.push_back({contenders[i].name, s.front(), median, (s[s.size() * 9 / 10] - s[s.size() / 10]) / median});
  }
  return timings;
}

std::string option(int argc, char** argv, const std::string& name, const std::string& otherwise) {
  for (int i = 1; i + 1 < argc; ++i)
    if (argv[i] == "--" + name) return argv[i + 1];
  return otherwise;
}

Options parse_options(int argc, char** argv, int rounds) {
  const char* library = std::getenv("BITSANDBYTES_LIBRARY");
  return {std::stoi(option(argc, argv, "threads", "0")),
          std::stoi(option(argc, argv, "rounds", std::to_string(rounds))), option(argc, argv, "only", ""),
          option(argc, argv, "json", ""), option(argc, argv, "bitsandbytes", library ? library : "")};
}

Json to_json(const Timing& timing) {
  return {{"name", timing.name}, {"min_us", timing.min_us}, {"median_us", timing.median_us}, {"spread", timing.spread}};
}

}  // namespace nibble::bench
