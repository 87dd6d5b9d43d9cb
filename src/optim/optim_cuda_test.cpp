// Optimizers on a GPU: the bits of the CPU, paged or not, and state dictionaries that go from one to the other.
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/output.h"
#include "base/random.h"
#include "optim/optimizer_state.h"

namespace nibble {
namespace {

constexpr const char* kFamilies[] = {"Adam", "AdamW", "AdEMAMix", "Lion", "SGD", "LARS", "LAMB", "RMSprop", "Adagrad"};

/// Arrays on a device, with an optimizer there.
class Training {
 public:
  Training(const std::string& name, const std::vector<int64_t>& counts, const std::string& device)
      : backend_(1, device::parse_device(device)) {
    Random random(1);
    ParameterGroup group;
    for (const int64_t count : counts) {
      Tensor data(DType::f32, {count}), gradient(DType::f32, {count});
      const auto fill = [&](Tensor& tensor, float scale) {
        for (int64_t i = 0; i < count; ++i)
          tensor.as<float>()[i] =
              static_cast<float>(static_cast<int64_t>(random.next() >> 32) - (int64_t{1} << 31)) * scale;
      };
      fill(data, 0x1p-31f);
      fill(gradient, 0x1p-34f);
      data_.push_back(backend_.to_device(data));
      gradients_.push_back(backend_.to_device(gradient));
      group.params.push_back({"p" + std::to_string(group.params.size()),
                              {count},
                              data_.back().data(),
                              DType::f32,
                              gradients_.back().data(),
                              DType::f32});
    }
    if (backend_.cuda()) backend_.cuda()->synchronize();  // the optimizer has a stream of its own
    OptimizerOptions options;
    if (name.starts_with("SGD") || name.starts_with("LARS")) options = {.lr = 0.05, .momentum = 0.9};
    optimizer_ = std::make_unique<Optimizer>(name, std::vector<ParameterGroup>{group}, options, 1, device);
  }
  Optimizer& optimizer() { return *optimizer_; }
  device::CudaStream& stream() { return *backend_.cuda(); }
  bool is_on_gpu() const { return optimizer_->state().slots[0].state.state1.device().is_cuda(); }
  /// Every third step leaves one parameter out, if any is named.
  void run(int steps, int left_out = -1) {
    for (int i = 0; i < steps; ++i) {
      for (size_t p = 0; p < gradients_.size(); ++p)
        optimizer_->groups()[0].params[p].grad =
            static_cast<int>(p) == left_out && i % 3 == 2 ? nullptr : gradients_[p].data();
      optimizer_->step(0.5 + 0.1 * i);
    }
    optimizer_->synchronize();
  }
  std::vector<float> data() {
    std::vector<float> all;
    for (const Tensor& tensor : data_) {
      const Tensor host = backend_.to_host(tensor);
      all.insert(all.end(), host.as<float>(), host.as<float>() + host.count());
    }
    return all;
  }
  std::string saved(const std::string& file) {
    const auto path = std::filesystem::path(testing::TempDir()) / ("nibble_optim_cuda_" + file + ".safetensors");
    optimizer_->save(path);
    return read_file(path);
  }

 private:
  ops::Backend backend_;
  std::vector<Tensor> data_, gradients_;
  std::unique_ptr<Optimizer> optimizer_;
};

class OptimizerGpuTest : public testing::Test {
 protected:
  void SetUp() override {
    const device::CudaSupport support = device::describe_cuda();
    if (!support.missing.empty()) GTEST_SKIP() << support.missing;
  }
};

const std::vector<int64_t> kCounts{5000, 1, 4096, 300001, 65536, 65536, 100};

TEST_F(OptimizerGpuTest, EveryFamilyGivesTheBitsOfTheCpu) {
  for (const std::string family : kFamilies)
    for (const char* bits : {"32bit", "8bit"}) {
      Training cpu(family + bits, kCounts, "cpu"), gpu(family + bits, kCounts, "cuda");
      cpu.run(4);
      gpu.run(4);
      EXPECT_EQ(cpu.data(), gpu.data()) << family << bits;
      EXPECT_EQ(cpu.optimizer().gradient_norm(), gpu.optimizer().gradient_norm());
      EXPECT_EQ(cpu.saved("cpu"), gpu.saved("gpu")) << family << bits;
    }
}

/// What may be taken from the GPU beside what one training holds, until the end of a scope; nothing else runs there.
class Limit {
 public:
  Limit(Training& training, int64_t more_bytes) : stream_(training.stream()) {
    device::CudaStream& other = *training.optimizer().state().backend->cuda();
    for (device::CudaStream* stream : {&stream_, &other}) {
      stream->synchronize();
      stream->release_unused();
      more_bytes += stream->reserved_bytes();
    }
    stream_.limit_memory(more_bytes);
  }
  ~Limit() { stream_.limit_memory(0); }
  Limit(const Limit&) = delete;
  Limit& operator=(const Limit&) = delete;

 private:
  device::CudaStream& stream_;
};

TEST_F(OptimizerGpuTest, PagedStatesGiveTheSameBits) {
  const std::vector<int64_t> counts{5000, 1, 18'000'003, 65536, 65536, 9'000'000, 100};  // several pages
  for (const std::string name : {"AdamW8bit", "AdamW32bit", "AdEMAMix8bit", "Lion32bit"}) {
    std::vector<float> expected;
    std::string saved;
    {
      Training plain(name, counts, "cuda");
      plain.run(5, 4);
      expected = plain.data();
      saved = plain.saved("plain");
    }
    {
      Training resident("Paged" + name, counts, "cuda");
      resident.run(5, 4);
      EXPECT_TRUE(resident.is_on_gpu()) << name;
      EXPECT_EQ(expected, resident.data()) << name;
      EXPECT_EQ(saved, resident.saved("resident")) << name;
    }
    Training moving("Paged" + name, counts, "cuda");
    const Limit limit(moving, int64_t{54} << 20);  // pages, but not states
    moving.run(5, 4);
    EXPECT_FALSE(moving.is_on_gpu()) << name;
    EXPECT_EQ(expected, moving.data()) << name;
    EXPECT_EQ(saved, moving.saved("moving")) << name;
  }
}

TEST_F(OptimizerGpuTest, StatesMakeRoom) {
  const std::vector<int64_t> counts{5000, 9'000'001, 100};
  for (const std::string name : {"AdamW8bit", "AdEMAMix32bit"}) {
    std::vector<float> expected;
    std::string saved;
    {
      Training plain(name, counts, "cuda");
      for (int i = 0; i < 2; ++i) plain.run(2);
      expected = plain.data();
      saved = plain.saved("plain");
    }
    Training paged("Paged" + name, counts, "cuda");
    paged.run(2);
    EXPECT_TRUE(paged.is_on_gpu()) << name;
    {
      const Limit limit(paged, 0);
      EXPECT_NO_THROW(paged.stream().allocate(int64_t{8} << 20)) << name;
      EXPECT_FALSE(paged.is_on_gpu()) << name;
      EXPECT_THROW(paged.stream().allocate(int64_t{1} << 30), Error) << name;
    }
    paged.run(2);
    EXPECT_FALSE(paged.is_on_gpu()) << name;
    EXPECT_EQ(expected, paged.data()) << name;
    EXPECT_EQ(saved, paged.saved("paged")) << name;
  }
}

TEST_F(OptimizerGpuTest, StatesMoveBetweenDevices) {
  const auto path = std::filesystem::path(testing::TempDir()) / "nibble_optim_cuda_move.safetensors";
  for (const std::string name : {"AdamW8bit", "PagedAdamW8bit", "PagedLion32bit"}) {
    Training cpu(name, kCounts, "cpu"), gpu(name, kCounts, "cuda"), other(name, kCounts, "cuda");
    cpu.run(2);
    gpu.run(2);
    cpu.optimizer().save(path);
    gpu.optimizer().load(path);
    cpu.run(2);
    gpu.run(2);
    EXPECT_EQ(cpu.data(), gpu.data()) << name;
    other.optimizer().load(path);
    EXPECT_EQ(other.saved("other"), read_file(path)) << name;
  }
}

}  // namespace
}  // namespace nibble
