// 4-bit products of very many rows of x into bf16, whose weights are decoded beside them: exact to the bit.
#include <numeric>

#include "kernels/cuda/weight_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

/// Small integers and quarters, which every kernel sums without an error.
class MatmulAheadGpuTest : public GpuTest {
 protected:
  /// Jobs of one call against the kernels for few rows; y is poisoned, and its last columns belong to no job.
  void expect_exact(const std::vector<int64_t>& rows_of_jobs, int64_t cols, const std::vector<int64_t>& ms) {
    Random random(12);
    const quant::CodeBook4Bit book = exact_book();
    const int64_t stride = std::accumulate(rows_of_jobs.begin(), rows_of_jobs.end(), int64_t{8});
    for (const bool nested : {false, true}) {
      std::vector<Weight4Bit> weights;
      for (const int64_t rows : rows_of_jobs) {
        Weight4Bit& w = weights.emplace_back(random, Shape{1, rows, cols, 64}, nested, book, 0);
        w.make_exact(random);
      }
      for (const int64_t m : ms) {
        Array x = exact_activations(random, m * cols, stream());
        Array y[2];
        const std::string label = "m " + std::to_string(m) + (nested ? " nested" : "");
        for (const bool invariant : {true, false}) {
          y[invariant] = Array(DType::bf16, m * stride, 0);
          for (int64_t i = 0; i < y[invariant].count(); ++i) y[invariant].set(i, 1e30f);
          y[invariant].upload(stream());
          auto* to = y[invariant].device<uint8_t>(stream());
          std::vector<Matmul4BitJob> jobs;
          for (Weight4Bit& w : weights) {
            jobs.push_back(w.job(stream(), to, stride, jobs.size() % 2 == 0, false, DType::bf16));
            to += w.rows * 2;
          }
          cuda().matmul_4bit(context, {x.device(stream()), m, cols, DType::bf16, invariant, DType::bf16}, jobs.data(),
                             static_cast<int64_t>(jobs.size()));
          finish(label);
          y[invariant].download(stream(), label);
        }
        expect_close(y[true], y[false], 0, label);
      }
    }
  }
};

/// Tiles taken whole, and others cut; the ends of jobs and of x within a tile.
TEST_F(MatmulAheadGpuTest, JobsAreExactWhereverTilesAreCut) { expect_exact({5000, 9000, 40, 264}, 576, {1593, 2048}); }

/// The smaller tiles at which warp groups take turns, more of them than are kept decoded, and an odd number of rounds.
TEST_F(MatmulAheadGpuTest, PanelsOfTurnsThatTakeEachOthersPlaceAreExact) { expect_exact({11080}, 3648, {1700}); }

/// Four tiles for each pair of an H100's blocks in turns, three whole ones without: for tools that watch every access.
TEST_F(MatmulAheadGpuTest, SmallTilesInTurnsAreExact) { expect_exact({7392}, 192, {1536}); }
TEST_F(MatmulAheadGpuTest, SmallTilesAheadAreExact) { expect_exact({8200}, 192, {1536}); }

/// More decoded weights than are kept at a time, up to where tiles are cut.
TEST_F(MatmulAheadGpuTest, PanelsThatTakeEachOthersPlaceAreExact) { expect_exact({14856}, 2688, {1540}); }

/// Fewer rows of x: pairs of blocks that begin a tile with the sums that another pair has left.
TEST_F(MatmulAheadGpuTest, PairsThatBeginWithOthersSumsAreExact) {
  expect_exact({5000, 1000, 40, 264}, 704, {1000, 1100});
}

/// Launches that start while the one before, with tiles cut elsewhere, still counts: never synchronized in between.
TEST_F(MatmulAheadGpuTest, LaunchesOfOtherSizesLeaveEachOthersCounts) {
  constexpr int64_t kRows[] = {4096, 11008}, kCols = 2048, kM = 512;
  constexpr int kTimes = 300;
  Random random(14);
  const quant::CodeBook4Bit book = exact_book();
  Array x = exact_activations(random, kM * kCols, stream());
  const MatmulInput slow{x.device(stream()), kM, kCols, DType::bf16, true, DType::bf16};
  const MatmulInput fast{x.device(stream()), kM, kCols, DType::bf16, false, DType::bf16};
  std::vector<Array> expected, y;
  std::vector<Weight4Bit> weights;  // kept: the jobs point to them
  std::vector<Matmul4BitJob> jobs;
  for (const int64_t rows : kRows) {
    Weight4Bit w(random, Shape{1, rows, kCols, 64}, false, book, 0);
    w.make_exact(random);
    for (auto* all : {&expected, &y}) {
      all->emplace_back(DType::bf16, kM * rows, 0).upload(stream());
      jobs.push_back(w.job(stream(), all->back().device(stream()), rows, false, false, DType::bf16));
    }
    cuda().matmul_4bit(context, slow, &jobs[jobs.size() - 2], 1);
    weights.push_back(std::move(w));
  }
  finish("one after the other");
  for (int i = 0; i < kTimes; ++i)
    for (const size_t j : {size_t{1}, size_t{3}}) cuda().matmul_4bit(context, fast, &jobs[j], 1);
  finish("in turn");
  for (size_t j = 0; j < 2; ++j) {
    expected[j].download(stream(), "expected");
    y[j].download(stream(), "y");
    expect_close(expected[j], y[j], 0, "rows " + std::to_string(kRows[j]));
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
