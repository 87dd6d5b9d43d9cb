// Optimizers: what they reach, what they refuse, and that nothing but their inputs decides their bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <vector>

#include "base/half.h"
#include "base/output.h"
#include "base/random.h"
#include "checkpoint/safetensors_writer.h"
#include "optim/optimizer_state.h"
#include "optim/state_dict.h"

namespace nibble {
namespace {

constexpr const char* kFamilies[] = {"Adam", "AdamW", "AdEMAMix", "Lion", "SGD", "LARS", "LAMB", "RMSprop", "Adagrad"};

OptimizerOptions options_of(const std::string& family) {
  OptimizerOptions options;
  if (family == "SGD" || family == "LARS") options = {.lr = 0.05, .momentum = 0.9};
  return options;
}

/// Arrays with their gradients, and an optimizer over them.
class Training {
 public:
  Training(const std::string& name, const std::vector<int64_t>& counts, const OptimizerOptions& options = {},
           int threads = 1, uint64_t seed = 1) {
    Random random(seed);
    ParameterGroup group;
    for (size_t i = 0; i < counts.size(); ++i) {
      const auto count = static_cast<size_t>(counts[i]);
      data_.emplace_back(count);
      gradients_.emplace_back(count);
      for (float& x : data_.back()) x = static_cast<float>(random.normal());
      group.params.push_back({"p" + std::to_string(i), {counts[i]}, nullptr, DType::f32, nullptr, DType::f32});
    }
    for (size_t i = 0; i < counts.size(); ++i) {
      group.params[i].data = data_[i].data();
      group.params[i].grad = gradients_[i].data();
    }
    optimizer_ = std::make_unique<Optimizer>(name, std::vector<ParameterGroup>{group}, options, threads);
  }
  Optimizer& optimizer() { return *optimizer_; }
  std::vector<float>& data(size_t i = 0) { return data_[i]; }
  std::vector<float>& gradient(size_t i = 0) { return gradients_[i]; }
  const std::vector<std::vector<float>>& all() const { return data_; }

  /// `steps` with gradients that depend on the step's number alone.
  void run(int begin, int end) {
    for (int step = begin; step < end; ++step) {
      Random random(1000 + static_cast<uint64_t>(step));
      for (auto& gradient : gradients_)
        for (float& g : gradient) g = static_cast<float>(random.normal()) * 0.1f;
      optimizer_->step();
    }
  }
  /// Gradient of sum (x - target)^2 / 2, target_i = sin(i).
  double descend(int steps, double lr_falls_to = 1) {
    const double lr = optimizer_->lr();
    for (int step = 0; step < steps; ++step) {
      for (size_t k = 0; k < data_.size(); ++k)
        for (size_t i = 0; i < data_[k].size(); ++i) gradients_[k][i] = data_[k][i] - std::sin(float(i));
      optimizer_->set_lr(lr * (1 - (1 - lr_falls_to) * step / steps));
      optimizer_->step();
    }
    double loss = 0, count = 0;
    for (const auto& data : data_)
      for (size_t i = 0; i < data.size(); ++i, ++count) loss += std::pow(data[i] - std::sin(double(i)), 2);
    return loss / count;
  }

 private:
  std::vector<std::vector<float>> data_, gradients_;
  std::unique_ptr<Optimizer> optimizer_;
};

std::filesystem::path temporary(const std::string& name) {
  return std::filesystem::path(testing::TempDir()) / ("nibble_optim_" + name);
}

void expect_error(ErrorCode code, const std::string& text, const std::function<void()>& body) {
  try {
    body();
    ADD_FAILURE() << "no error; expected " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST(Optimizer, EveryFamilyConvergesInBothWidths) {
  for (const std::string family : kFamilies)
    for (const char* bits : {"32bit", "8bit"}) {
      OptimizerOptions options = options_of(family);
      options.weight_decay = 0;
      if (family == "Adagrad")
        options.lr = 0.5;
      else if (family == "LARS")
        options.lr = 1;  // at most 2 % of the parameter a step
      else if (family != "SGD")
        options.lr = 0.03;
      Training training(family + bits, {5000}, options);
      EXPECT_LT(training.descend(400, 0.01), 0.01) << family << bits;
    }
}

TEST(Optimizer, ResumesBitForBit) {
  for (const std::string family : kFamilies)
    for (const char* bits : {"32bit", "8bit"}) {
      OptimizerOptions options = options_of(family);
      options.percentile_clipping = 50;
      const std::vector<int64_t> counts{5000, 100, 4096, 20001};
      Training whole(family + bits, counts, options), first(family + bits, counts, options);
      whole.optimizer().override_config("p3", {.optim_bits = 32});
      first.optimizer().override_config("p3", {.optim_bits = 32});
      whole.run(0, 6);
      first.run(0, 3);
      const auto path = temporary("resume.safetensors");
      first.optimizer().save(path);
      Training second(family + bits, counts, options);
      second.optimizer().override_config("p3", {.optim_bits = 32});
      for (size_t i = 0; i < counts.size(); ++i) second.data(i) = first.data(i);
      second.optimizer().load(path);
      second.run(3, 6);
      EXPECT_EQ(whole.all(), second.all()) << family << bits;
      const auto again = temporary("again.safetensors"), straight = temporary("straight.safetensors");
      second.optimizer().save(again);
      whole.optimizer().save(straight);
      EXPECT_EQ(read_file(again), read_file(straight)) << family << bits;
    }
}

TEST(Optimizer, ThreadsDoNotMatter) {
  for (const std::string family : kFamilies) {
    Training one(family + "8bit", {40000, 3, 5000}, options_of(family), 1);
    Training three(family + "8bit", {40000, 3, 5000}, options_of(family), 3);
    one.run(0, 3);
    three.run(0, 3);
    EXPECT_EQ(one.all(), three.all()) << family;
  }
}

TEST(Optimizer, PagedClassesGiveTheSameBits) {
  for (const char* name : {"Adam8bit", "AdamW32bit", "AdEMAMix8bit", "Lion8bit"}) {
    Training plain(name, {20000}), paged(std::string("Paged") + name, {20000});
    EXPECT_TRUE(paged.optimizer().is_paged());
    plain.run(0, 3);
    paged.run(0, 3);
    EXPECT_EQ(plain.all(), paged.all()) << name;
  }
}

TEST(Optimizer, StatesFollowSizesAndOverrides) {
  Training training("AdamW8bit", {4095, 4096, 10000}, {.min_8bit_size = 4096});
  Optimizer& optimizer = training.optimizer();
  optimizer.override_config("p2", {.optim_bits = 32});
  EXPECT_EQ(optimizer.state_bits("p0"), 32);
  EXPECT_EQ(optimizer.state_bits("p1"), 8);
  EXPECT_EQ(optimizer.state_bits("p2"), 32);
  EXPECT_EQ(optimizer.state_size_bytes(), 0);
  training.run(0, 1);
  EXPECT_EQ(optimizer.state_size_bytes(), 8 * 4095 + 2 * (4096 + 4 * 16) + 8 * 10000);
  expect_error(ErrorCode::invalid_argument, "it has taken 1 steps",
               [&] { optimizer.override_config("p2", {.optim_bits = 8}); });
  expect_error(ErrorCode::not_found, "no parameter 'q'", [&] { optimizer.override_config("q", {}); });
}

TEST(Optimizer, ParametersWithoutGradientRest) {
  Training training("AdamW", {10, 10});
  training.optimizer().groups()[0].params[1].grad = nullptr;
  const std::vector<float> before = training.data(1);
  training.run(0, 2);
  EXPECT_EQ(training.data(1), before);
  EXPECT_EQ(training.optimizer().state_size_bytes(), 80);
}

TEST(Optimizer, GroupsHaveTheirOwnOptions) {
  std::vector<float> a(8, 1.0f), b(8, 1.0f), zero(8, 0.0f);
  const auto parameter = [&](const char* name, std::vector<float>& x) {
    return TrainableParameter{name, {8}, x.data(), DType::f32, zero.data(), DType::f32};
  };
  AdamW optimizer({{{parameter("a", a)}, {.weight_decay = 0.5}}, {{parameter("b", b)}, {.weight_decay = 0.0}}},
                  {.lr = 0.1});
  optimizer.step();
  EXPECT_FLOAT_EQ(a[0], 0.95f);
  EXPECT_FLOAT_EQ(b[0], 1.0f);
  optimizer.set_lr(0, 0.2);
  optimizer.step();
  EXPECT_FLOAT_EQ(a[0], 0.95f * 0.9f);
}

TEST(Optimizer, WeightDecayOfEachKind) {
  for (const std::string family : kFamilies) {
    OptimizerOptions options = options_of(family);
    options.lr = 0.1;
    options.weight_decay = 0.5;
    Training training(family, {4}, options);
    training.data() = {1, 1, 1, 1};
    training.optimizer().step();                        // gradient 0
    float expected = 0.95f;                             // 1 - lr * weight_decay
    if (family == "LARS") expected = 1 - 0.1f * 0.02f;  // an update of 2 % of the parameter
    if (family == "Adagrad") expected = 0.9f;           // g / sqrt(g^2) = 1
    if (family == "RMSprop") expected = 0;              // g / sqrt(0.01 g^2) = 10
    EXPECT_NEAR(training.data()[0], expected, 1e-6) << family;
  }
}

TEST(Optimizer, NonFiniteGradients) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const std::string family : kFamilies) {
    if (family == "LARS" || family == "LAMB") continue;  // a norm over the parameter: all of it becomes NaN in 32 bits
    for (const float bad : {nan, inf, -inf}) {
      Training wide(family + "32bit", {5000}, options_of(family)), narrow(family + "8bit", {5000}, options_of(family));
      for (Training* training : {&wide, &narrow}) training->gradient()[7] = bad;
      const float before = narrow.data()[7];
      wide.optimizer().step();
      narrow.optimizer().step();
      EXPECT_EQ(narrow.data()[7], before) << family;
      const bool is_only_a_sign = family == "Lion" && !std::isnan(bad);
      EXPECT_EQ(std::isfinite(wide.data()[7]), is_only_a_sign) << family << bad;
      wide.data()[7] = 0;
      for (size_t i = 0; i < 5000; ++i)
        ASSERT_TRUE(std::isfinite(wide.data()[i]) && std::isfinite(narrow.data()[i])) << family << i;
    }
  }
}

TEST(Optimizer, TrustRatiosSurviveSpoiledElementsIn8Bits) {
  for (const char* name : {"LARS8bit", "LAMB8bit"}) {
    Training training(name, {5000}, options_of(std::string(name).substr(0, 4)));
    training.run(0, 1);
    training.gradient()[7] = std::numeric_limits<float>::quiet_NaN();
    training.optimizer().step();
    for (const float x : training.data()) ASSERT_TRUE(std::isfinite(x)) << name;
  }
}

TEST(Optimizer, PercentileClippingScalesOutliersDown) {
  Training clipped("SGD", {100}, {.lr = 1.0, .momentum = 0.5, .percentile_clipping = 50});
  for (int step = 0; step < 20; ++step) {
    std::fill(clipped.gradient().begin(), clipped.gradient().end(), 0.01f);
    clipped.optimizer().step();
  }
  const float before = clipped.data()[0];
  std::fill(clipped.gradient().begin(), clipped.gradient().end(), 100.0f);
  clipped.optimizer().step();
  EXPECT_NEAR(before - clipped.data()[0], 0.01 * 2, 1e-4);
}

TEST(Optimizer, GradientNormAndClipping) {
  Training training("AdamW", {3, 4});
  training.gradient(0) = {1, 2, 2};
  training.gradient(1) = {4, 4, 4, 4};
  EXPECT_NEAR(training.optimizer().gradient_norm(), std::sqrt(73.0), 1e-12);
  EXPECT_NEAR(training.optimizer().clip_scale(1.0), 1 / (std::sqrt(73.0) + 1e-6), 1e-12);
  EXPECT_EQ(training.optimizer().clip_scale(100.0), 1.0);
  training.gradient(0)[0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(training.optimizer().clip_scale(1.0)));
}

TEST(Optimizer, SixteenBitParametersAndGradients) {
  std::vector<bf16_t> p(5000, to_bf16(1.0f)), g(5000, to_bf16(0.5f));
  std::vector<f16_t> q(5000, to_f16(1.0f)), h(5000, to_f16(0.5f));
  AdamW8bit optimizer({{{{"p", {5000}, p.data(), DType::bf16, g.data(), DType::bf16},
                         {"q", {50, 100}, q.data(), DType::f16, h.data(), DType::f16}},
                        {}}},
                      {.lr = 0.25, .weight_decay = 0.0});
  optimizer.step();
  EXPECT_EQ(to_float(p[4999]), 0.75f);
  EXPECT_EQ(to_float(q[4999]), 0.75f);
}

TEST(Optimizer, NamesOfClassesAndOfTransformers) {
  std::vector<float> x(4);
  const std::vector<ParameterGroup> groups{{{{"x", {4}, x.data(), DType::f32, nullptr, DType::f32}}, {}}};
  for (const std::string& name : optim_names()) {
    const Optimizer optimizer = optimizer_for(name, groups, {.lr = 0.1, .min_8bit_size = 0});
    EXPECT_EQ(optimizer.is_paged(), name.find("paged") != std::string::npos) << name;
    EXPECT_EQ(optimizer.state_bits("x"), name.find("8bit") != std::string::npos ? 8 : 32) << name;
  }
  EXPECT_EQ(optimizer_for("paged_lion_8bit", groups).family(), "Lion");
  for (const char* name : {"adafactor", "adamw_torch_8bit", "galore_adamw_layerwise", "schedule_free_sgd", "lomo"})
    expect_error(ErrorCode::invalid_argument, "paged_adamw_8bit", [&] { optimizer_for(name, groups); });
  expect_error(ErrorCode::invalid_argument, "paged_adamw_8bit", [&] { optimizer_for("adamw_9bit", groups); });
  for (const char* name : {"PagedSGD", "adamw", "AdamW16bit", "", "8bit", "PagedLAMB8bit"})
    expect_error(ErrorCode::invalid_argument, "AdEMAMix", [&] { Optimizer(name, groups); });
}

// Two steps with gradient 2 from 1: torch's SGD without momentum, with decay; Lion whose first average counts 0.1, then
// 0.001 of the gradient, whose sign turns.
TEST(Optimizer, TransformersStringsHaveItsTrainersOptions) {
  std::vector<float> x{1}, g{2};
  const std::vector<ParameterGroup> groups{{{{"x", {1}, x.data(), DType::f32, g.data(), DType::f32}}, {}}};
  Optimizer sgd = optimizer_for("sgd", groups, {.lr = 0.1, .weight_decay = 0.5});
  sgd.step();
  sgd.step();
  EXPECT_NEAR(x[0], 0.95 * (0.95 * 1 - 0.2) - 0.2, 1e-6);
  x = {1};
  Optimizer lion = optimizer_for("lion_32bit", groups, {.lr = 0.25});
  lion.step();  // m = 0.001 * 2
  g = {-0.01f};
  lion.step();  // 0.9 m - 0.001 > 0, with the class's betas too; m = 0.999 m - 0.00001
  g = {-0.019f};
  lion.step();  // 0.9 * 0.001988 - 0.0019 < 0; with the class's, 0.9 * 0.0197 - 0.0019 > 0
  EXPECT_EQ(x[0], 0.75f);
}

TEST(Optimizer, BadOptionsAreNamed) {
  std::vector<float> x(4);
  const TrainableParameter parameter{"x", {4}, x.data(), DType::f32, x.data(), DType::f32};
  const std::vector<ParameterGroup> groups{{{parameter}, {}}};
  const auto refuses = [&](const char* name, const OptimizerOptions& options, const char* text) {
    expect_error(ErrorCode::invalid_argument, text, [&] { Optimizer(name, groups, options); });
  };
  refuses("SGD", {.momentum = 0.9}, "SGD needs lr");
  refuses("SGD", {.lr = 0.1}, "SGD needs momentum");
  refuses("LARS", {.lr = 0.1}, "LARS needs momentum");
  refuses("AdamW", {.momentum = 0.9}, "AdamW has no option 'momentum'");
  refuses("AdamW", {.max_unorm = 1.0}, "no option 'max_unorm'");
  refuses("AdamW", {.betas = {0.9, 0.999, 0.9999}}, "found 3 values, AdamW takes 2");
  refuses("AdamW", {.betas = {0.9, 1.0}}, "found 1, expected [0, 1)");
  refuses("AdamW", {.lr = -2.0}, "lr: found -2");
  refuses("AdamW", {.eps = -1.0}, "eps: found -1");
  refuses("AdamW", {.weight_decay = std::nan("")}, "weight_decay: found nan");
  refuses("AdamW", {.optim_bits = 4}, "optim_bits: found 4");
  refuses("AdamW8bit", {.optim_bits = 32}, "optim_bits 32: the name says 8");
  refuses("AdamW", {.percentile_clipping = 0}, "percentile_clipping: found 0");
  refuses("AdamW", {.min_8bit_size = -1}, "min_8bit_size: found -1");
  refuses("RMSprop", {.alpha = 0.0}, "RMSprop needs alpha");
  expect_error(ErrorCode::invalid_argument, "no parameters", [] { Optimizer("AdamW", {}); });
  expect_error(ErrorCode::invalid_argument, "given twice", [&] { Optimizer("AdamW", {{{parameter, parameter}, {}}}); });
  TrainableParameter codes = parameter;
  codes.dtype = DType::u8;
  expect_error(ErrorCode::invalid_argument, "uint8", [&] { Optimizer("AdamW", {{{codes}, {}}}); });
  TrainableParameter empty = parameter;
  empty.data = nullptr;
  Optimizer optimizer("AdamW", {{{empty}, {}}});
  expect_error(ErrorCode::invalid_argument, "data is null", [&] { optimizer.step(); });
  EXPECT_EQ(optimizer.state_size_bytes(), 0);
  expect_error(ErrorCode::invalid_argument, "lr_scheduler_type",
               [] { LearningRateSchedule{.type = "poly"}.factor(0); });
}

/// Saves `training`, lets `change` at the tensors, and loads what came out.
void load_changed(Training& training, const std::function<void(std::vector<optim::NamedTensor>&)>& change) {
  std::vector<optim::NamedTensor> tensors = optim::state_dict(training.optimizer());
  change(tensors);
  Training other("AdamW8bit", {5000, 10});
  optim::load_state_dict(
      other.optimizer(),
      [&](std::string_view name) {
        for (const auto& tensor : tensors)
          if (tensor.name == name) return tensor.tensor;
        return Tensor();
      },
      "file");
}

TEST(OptimizerState, BadFilesAreNamedAndChangeNothing) {
  Training training("AdamW8bit", {5000, 10});
  training.run(0, 2);
  const auto at = [](std::vector<optim::NamedTensor>& tensors, const std::string& name) -> optim::NamedTensor& {
    for (auto& tensor : tensors)
      if (tensor.name.ends_with(name)) return tensor;
    throw std::out_of_range(name);
  };
  const auto refuses = [&](const char* text, const std::function<void(std::vector<optim::NamedTensor>&)>& change) {
    expect_error(ErrorCode::corrupt_file, text, [&] { load_changed(training, change); });
  };
  load_changed(training, [](auto&) {});
  refuses("absmax1' is missing", [&](auto& t) { at(t, "0.__bnb_optimizer_quant_state__.absmax1").name = "x"; });
  refuses("expected uint8 [5000]", [&](auto& t) { at(t, "state1").tensor = Tensor(DType::f32, {5000}); });
  refuses("found float32 [3]", [&](auto& t) { at(t, "absmax2").tensor = Tensor(DType::f32, {3}); });
  refuses("step", [&](auto& t) {
    at(t, "0.step").tensor = Tensor(DType::i64, {});
    std::memset(at(t, "0.step").tensor.data(), 0, 8);
  });
  refuses("not ascending", [&](auto& t) {
    Tensor map(DType::f32, {256});
    std::memset(map.data(), 0, 1024);
    at(t, "qmap1").tensor = map;
  });
  refuses("param_groups", [&](auto& t) { at(t, "param_groups").tensor = Tensor(DType::u8, {0}); });
}

TEST(OptimizerState, AnotherOptimizersFileIsRefused) {
  Training training("AdamW8bit", {5000, 10});
  training.run(0, 1);
  const auto path = temporary("other.safetensors");
  training.optimizer().save(path);
  Training lion("Lion8bit", {5000, 10}), fewer("AdamW8bit", {5000}), bigger("AdamW8bit", {6000, 10});
  expect_error(ErrorCode::invalid_argument, "belongs to AdamW, this optimizer is Lion",
               [&] { lion.optimizer().load(path); });
  expect_error(ErrorCode::invalid_argument, "found 2 parameters, expected 1", [&] { fewer.optimizer().load(path); });
  expect_error(ErrorCode::corrupt_file, "expected uint8 [6000]", [&] { bigger.optimizer().load(path); });
  EXPECT_EQ(bigger.optimizer().state_size_bytes(), 0);
  expect_error(ErrorCode::not_found, "nowhere", [&] { lion.optimizer().load(temporary("nowhere.safetensors")); });
  expect_error(ErrorCode::invalid_argument, ".safetensors", [&] { training.optimizer().save(temporary("x.bin")); });
}

TEST(OptimizerState, LearningRateComesBack) {
  Training training("AdamW8bit", {5000});
  training.optimizer().set_lr(0.125);
  training.run(0, 1);
  const auto path = temporary("lr.safetensors");
  training.optimizer().save(path);
  Training other("AdamW8bit", {5000});
  other.optimizer().load(path);
  EXPECT_EQ(other.optimizer().lr(), 0.125);
}

}  // namespace
}  // namespace nibble
