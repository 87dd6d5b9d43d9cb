// embed against the reference.
#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

TEST_F(GpuTest, EmbedAgrees) {
  Random random(1);
  for (const DType dtype : kFloatTypes)
    for (const int64_t cols : {1, 64, 100, 4099})
      for (const bool accumulate : {false, true}) {
        const int64_t vocab = 50, count = 7;
        Array table = random_array(random, dtype, vocab * cols), out = random_array(random, DType::f32, count * cols);
        Array ids(DType::i32, count);
        for (int64_t i = 0; i < count; ++i) ids.set(i, static_cast<float>(random.next() % vocab));
        for (Array* array : {&table, &ids, &out}) array->upload(stream());
        cuda().embed(context, {table.device(stream()), dtype, ids.device<int32_t>(stream()), count, cols, 1.5f,
                               out.device<float>(stream()), accumulate});
        finish("embed");
        Array expected = out;
        reference().embed(
            cpu, {table.host(), dtype, ids.host<int32_t>(), count, cols, 1.5f, expected.host<float>(), accumulate});
        out.download(stream(), "embed");
        expect_close(expected, out, 0, "embed " + std::string(name_of(dtype)) + " " + std::to_string(cols));
      }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
