// The penalty on tokens that occurred and the best candidates of rows against the reference.
#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

class SamplingTest : public GpuTest {
 protected:
  void check_candidates(const std::string& label, Array x, int64_t rows, int64_t cols, int64_t count,
                        float temperature) {
    Array columns(DType::i32, rows * count), values(DType::f32, rows * count), masses(DType::f32, rows);
    Array found_columns = columns, found_values = values, found_masses = masses;
    x.upload(stream());
    reference().top_candidates(cpu, {x.host<float>(), rows, cols, count, temperature, columns.host<int32_t>(),
                                     values.host<float>(), masses.host<float>()});
    cuda().top_candidates(
        context, {x.device<float>(stream()), rows, cols, count, temperature, found_columns.device<int32_t>(stream()),
                  found_values.device<float>(stream()), found_masses.device<float>(stream())});
    finish(label);
    found_columns.download(stream(), label);
    found_values.download(stream(), label);
    found_masses.download(stream(), label);
    expect_close(columns, found_columns, 0, label + " columns");
    expect_close(values, found_values, 0, label + " values");
    expect_close(masses, found_masses, 1e-6, label + " masses");
  }
};

TEST_F(SamplingTest, CandidatesAgree) {
  Random random(1);
  for (const int64_t cols : {1, 5, 33, 1000, 32000, 50257, 128256, 262208})
    for (const int64_t count : {1, 50, 64, 512})
      for (const int64_t rows : {1, 3}) {
        const std::string label = std::to_string(cols) + " " + std::to_string(count) + " " + std::to_string(rows);
        check_candidates("normal " + label, random_array(random, DType::f32, rows * cols, 3), rows, cols, count, 0.7f);
      }
}

TEST_F(SamplingTest, TiesGoToTheLowestColumns) {
  Random random(2);
  for (const int64_t cols : {40, 3000, 128256}) {
    const int64_t rows = 6;
    Array x = random_array(random, DType::f32, rows * cols, 2);
    for (int64_t c = 0; c < cols; ++c) {
      x.set(c, 1.5f);                                          // all equal
      x.set(cols + c, std::round(x.get(cols + c)));            // few values
      x.set(2 * cols + c, c % 7 == 3 ? 2.0f : NAN);            // not many numbers
      x.set(3 * cols + c, c == cols - 1 ? -3.0f : -INFINITY);  // one
      x.set(4 * cols + c, NAN);                                // none
      x.set(5 * cols + c, c % 2 ? -0.0f : 0.0f);               // zeros of both signs
    }
    for (const int64_t count : {1, 8, 64, 511}) check_candidates("ties", x, rows, cols, count, 1.0f);
  }
}

TEST_F(SamplingTest, ManyRowsAndTheWidestOnes) {
  Random random(3);
  check_candidates("many rows", random_array(random, DType::f32, 1500 * 200), 1500, 200, 64, 1.3f);
  check_candidates("wide", random_array(random, DType::f32, 2 * kMostCandidateColumns), 2, kMostCandidateColumns,
                   kMostCandidates, 0.2f);
  check_candidates("large and small", random_array(random, DType::f32, 2 * 32000, 1e30f), 2, 32000, 64, 1.0f);
}

TEST_F(SamplingTest, PenaltiesAgree) {
  Random random(4);
  const int64_t rows = 4, cols = 1003;
  constexpr int32_t kCounts[] = {0, 1, 1003, 700};
  Array x = random_array(random, DType::f32, rows * cols, 3), offsets(DType::i32, rows + 1);
  Array tokens(DType::i32, 1704);
  int64_t total = 0;
  offsets.host<int32_t>()[0] = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int32_t i = 0; i < kCounts[r]; ++i)
      tokens.host<int32_t>()[total++] = (i * 10 + 5) % static_cast<int32_t>(cols);
    offsets.host<int32_t>()[r + 1] = static_cast<int32_t>(total);
  }
  x.set(5, NAN);
  x.set(2 * cols, -INFINITY);
  for (const float penalty : {1.3f, 0.8f}) {
    Array expected = x, found = x;
    for (Array* array : {&found, &tokens, &offsets}) array->upload(stream());
    reference().penalize(
        cpu, {expected.host<float>(), rows, cols, tokens.host<int32_t>(), offsets.host<int32_t>(), penalty});
    cuda().penalize(context, {found.device<float>(stream()), rows, cols, tokens.device<int32_t>(stream()),
                              offsets.device<int32_t>(stream()), penalty});
    finish("penalize");
    found.download(stream(), "penalize");
    expect_close(expected, found, 0, "penalize");
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
