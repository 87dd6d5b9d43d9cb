// bench_quantize [--count N] [--threads N] [--rounds N] [--only TEXT] [--bitsandbytes LIBRARY] [--json FILE]
#include <omp.h>

#include <cstdio>

#include "base/output.h"
#include "base/random.h"
#include "bench/machine/peaks.h"
#include "bench/quantize/problem.h"

namespace nibble::bench {

/// Normal deviates, as weights are; a period of 2^20 is far more than any block.
Problem make_problem(int64_t count) {
  Random random(1);
  Problem problem{count, {}, {}};
  for (int64_t i = 0; i < count; ++i) {
    const float x =
        i < (1 << 20) ? static_cast<float>(random.normal()) * 0.02f : problem.f32[static_cast<size_t>(i - (1 << 20))];
    problem.f32.push_back(x);
    problem.bf16.push_back(to_bf16(x));
  }
  return problem;
}

}  // namespace nibble::bench

int main(int argc, char** argv) {
  using namespace nibble;
  using namespace nibble::bench;
  const Options options = parse_options(argc, argv, 9);
  ThreadPool pool(options.threads);
  omp_set_num_threads(pool.threads());
  const Problem problem = make_problem(std::stoll(option(argc, argv, "count", "134217728")));
  std::vector<Entry> entries;
  add_memcpy(entries, problem, pool);
  add_nibble(entries, problem, pool);
  add_bitsandbytes(entries, problem, options.bitsandbytes);
  std::erase_if(entries, [&](const Entry& e) { return e.contender.name.find(options.only) == std::string::npos; });

  for (const auto& peak : machine_peaks(pool))
    if (peak.contender.name == "copy") entries.insert(entries.begin(), {peak.contender, peak.amount});
  std::vector<Contender> contenders;
  for (const auto& entry : entries) contenders.push_back(entry.contender);
  const auto timings = race(contenders, options.rounds);

  Json json = Json::array();
  const double copy = entries.front().bytes / timings.front().min_us / 1e3;
  std::printf("%ld elements, %d threads\n%-40s %10s %10s %7s %7s %8s\n", static_cast<long>(problem.count),
              pool.threads(), "contender", "best us", "median us", "spread", "GB/s", "of copy");
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto& t = timings[i];
    const double bandwidth = entries[i].bytes / t.min_us / 1e3;
    std::printf("%-40s %10.0f %10.0f %6.1f%% %7.2f %7.1f%%\n", t.name.c_str(), t.min_us, t.median_us, t.spread * 100,
                bandwidth, bandwidth / copy * 100);
    Json row = to_json(t);
    row["gb_per_s"] = bandwidth;
    row["of_copy"] = bandwidth / copy;
    json.push_back(row);
  }
  if (!options.json.empty()) write_file(options.json, dump_json(json));
}
