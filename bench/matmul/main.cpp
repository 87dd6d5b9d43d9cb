// bench_matmul [--m LIST] [--shapes ROWSxCOLS,...] [--threads N] [--rounds N] [--only TEXT] [--bitsandbytes LIBRARY]
// [--json FILE]
#include <omp.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <sstream>

#include "base/half.h"
#include "base/output.h"
#include "bench/machine/peaks.h"
#include "bench/matmul/problem.h"

namespace nibble::bench {
namespace {

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::stringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

/// Frobenius norm of y - x . w^T in double, over that of the product, for the first 4 rows of x.
template <typename Value>
double error_of(const Problem& p, const std::vector<float>& truth, Value value) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < std::min<int64_t>(p.m, 4); ++i)
    for (int64_t n = 0; n < p.rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < p.cols; ++k)
        sum += double{p.x[static_cast<size_t>(i * p.cols + k)]} * truth[static_cast<size_t>(n * p.cols + k)];
      const double d = value(i, n) - sum;
      difference += d * d;
      size += sum * sum;
    }
  return std::sqrt(difference / size);
}

/// What dequantizing to `bf16` (or not at all) and accumulating in fp32, one element after the other, gives.
double baseline_error(const Problem& p, const std::vector<float>& truth, bool in_bf16) {
  const auto rounded = [&](float v) { return in_bf16 ? to_float(to_bf16(v)) : v; };
  return error_of(p, truth, [&](int64_t i, int64_t n) {
    float sum = 0;
    for (int64_t k = 0; k < p.cols; ++k)
      sum += rounded(p.x[static_cast<size_t>(i * p.cols + k)]) * rounded(truth[static_cast<size_t>(n * p.cols + k)]);
    return static_cast<double>(sum);
  });
}

Json race_shape(const Problem& p, ThreadPool& pool, const Options& options) {
  std::vector<Entry*> entries;
  add_nibble(entries, p, pool);
  add_bitsandbytes(entries, p, options.bitsandbytes);
#if defined(NIBBLE_BENCH_ONEDNN)
  add_onednn(entries, p);
#endif
  std::erase_if(entries, [&](const Entry* e) { return e->contender.name.find(options.only) == std::string::npos; });
  const auto peaks = machine_peaks(pool);
  std::vector<Contender> contenders;
  for (const auto& peak : peaks) contenders.push_back(peak.contender);
  for (const auto* entry : entries) contenders.push_back(entry->contender);
  const auto timings = race(contenders, options.rounds);

  Json json = {{"m", p.m},         {"rows", p.rows},          {"cols", p.cols},
               {"block", p.block}, {"peaks", Json::object()}, {"entries", Json::array()}};
  std::printf("\nm %ld, weight %ld x %ld, block %ld, %d threads\n", static_cast<long>(p.m), static_cast<long>(p.rows),
              static_cast<long>(p.cols), static_cast<long>(p.block), pool.threads());
  double read = 0;
  for (size_t i = 0; i < peaks.size(); ++i) {
    const double best = peaks[i].amount / timings[i].min_us / 1e3,
                 median = peaks[i].amount / timings[i].median_us / 1e3;
    if (i == 0) read = best;
    std::printf("  %-10s %.1f %s (median %.1f)\n", timings[i].name.c_str(), best, peaks[i].unit.c_str(), median);
    json["peaks"][timings[i].name] = {{"best", best}, {"median", median}, {"unit", peaks[i].unit}};
  }
  const double exact_bf16 = baseline_error(p, p.w_nf4, true), exact_f32 = baseline_error(p, p.w_nf4, false);
  std::printf("  dequantized nf4, summed in fp32: error %.2e in bf16, %.2e in fp32\n", exact_bf16, exact_f32);
  json["baseline_error"] = {{"bf16", exact_bf16}, {"f32", exact_f32}};
  std::printf("  %-28s %10s %10s %7s %8s %7s %9s %9s\n", "contender", "best us", "median us", "spread", "GB/s",
              "of read", "GOP/s", "error");
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto& t = timings[peaks.size() + i];
    const auto& e = *entries[i];
    const double bandwidth = e.read_bytes / t.min_us / 1e3;
    const double rate = 2.0 * static_cast<double>(p.m * p.rows * p.cols) / t.min_us / 1e3;
    const double error =
        error_of(p, *e.truth, [&](int64_t r, int64_t n) { return double{e.y[static_cast<size_t>(r * p.rows + n)]}; });
    std::printf("  %-28s %10.1f %10.1f %6.1f%% %8.2f %6.1f%% %9.1f %9.2e\n", t.name.c_str(), t.min_us, t.median_us,
                t.spread * 100, bandwidth, read > 0 ? bandwidth / read * 100 : 0.0, rate, error);
    Json row = to_json(t);
    row["gb_per_s"] = bandwidth, row["gop_per_s"] = rate, row["error"] = error;
    json["entries"].push_back(row);
  }
  std::fflush(stdout);
  for (auto* entry : entries) delete entry;
  return json;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  using namespace nibble;
  using namespace nibble::bench;
  const Options options = parse_options(argc, argv, 9);
  ThreadPool pool(options.threads);
  omp_set_num_threads(pool.threads());
  Json results = Json::array();
  for (const auto& shape : split(option(argc, argv, "shapes", "4096x4096"))) {
    const auto x = shape.find('x');
    for (const auto& m : split(option(argc, argv, "m", "1,128")))
      results.push_back(
          race_shape(make_problem(std::stoll(m), std::stoll(shape.substr(0, x)), std::stoll(shape.substr(x + 1)), 64),
                     pool, options));
  }
  if (!options.json.empty()) write_file(options.json, dump_json(results));
}
