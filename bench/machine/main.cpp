// bench_machine [--threads N] [--rounds N] [--json FILE]: the peaks of this machine.
#include <cstdio>

#include "base/output.h"
#include "bench/machine/peaks.h"

int main(int argc, char** argv) {
  using namespace nibble;
  const auto options = bench::parse_options(argc, argv, 15);
  ThreadPool pool(options.threads);
  const auto peaks = bench::machine_peaks(pool);
  std::vector<bench::Contender> contenders;
  for (const auto& peak : peaks) contenders.push_back(peak.contender);
  const auto timings = bench::race(contenders, options.rounds);
  Json json = {{"threads", pool.threads()}};
  std::printf("%-10s %12s %12s %8s\n", "peak", "best", "median", "spread");
  for (size_t i = 0; i < peaks.size(); ++i) {
    const double best = peaks[i].amount / timings[i].min_us / 1e3,
                 median = peaks[i].amount / timings[i].median_us / 1e3;
    std::printf("%-10s %7.1f %s %7.1f %s %7.1f%%\n", timings[i].name.c_str(), best, peaks[i].unit.c_str(), median,
                peaks[i].unit.c_str(), timings[i].spread * 100);
    json[timings[i].name] = {{"best", best}, {"median", median}, {"unit", peaks[i].unit}};
  }
  if (!options.json.empty()) write_file(options.json, dump_json(json));
}
