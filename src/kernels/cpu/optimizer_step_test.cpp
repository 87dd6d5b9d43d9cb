// Optimizer steps: the same bits as the reference for any rule, type, size and special value.
#include <array>
#include <limits>
#include <utility>

#include "kernels/cpu/op_case.h"

namespace nibble::kernels::cpu::testing {
namespace {

constexpr std::array kRules{OptimizerRule::adam, OptimizerRule::ademamix, OptimizerRule::momentum,
                            OptimizerRule::lion, OptimizerRule::rmsprop,  OptimizerRule::adagrad};

int states_of(OptimizerRule rule) { return rule == OptimizerRule::ademamix ? 3 : rule == OptimizerRule::adam ? 2 : 1; }

/// Parameters of a call: their values, gradients and states before the step, as fp32.
struct Problem {
  OptimizerRule rule;
  DType dtype, gradient_dtype;
  OptimizerScalars scalars;
  std::vector<Buffer> parameters, gradients;
  std::vector<std::array<Buffer, 3>> states;
};

OptimizerScalars scalars_of(OptimizerRule rule) {
  OptimizerScalars c{.gradient_scale = 0.7f, .rate = 1e-2f, .beta1 = 0.9f, .beta2 = 0.999f, .beta3 = 0.9999f};
  const bool is_coupled =
      rule == OptimizerRule::momentum || rule == OptimizerRule::rmsprop || rule == OptimizerRule::adagrad;
  (is_coupled ? c.coupled_decay : c.keep) = is_coupled ? 0.01f : 0.9999f;
  c.eps = 1e-8f;
  c.alpha = 5;
  c.correction1 = 1.7f;
  c.correction2 = 3.1f;
  return c;
}

Problem make_problem(Random& random, OptimizerRule rule, DType dtype, DType gradient_dtype,
                     const std::vector<int64_t>& counts) {
  Problem problem{rule, dtype, gradient_dtype, scalars_of(rule), {}, {}, {}};
  for (const int64_t count : counts) {
    problem.parameters.push_back(random_buffer(random, dtype, count));
    problem.gradients.push_back(random_buffer(random, gradient_dtype, count, 0.1f));
    std::array<Buffer, 3> states;
    for (size_t k = 0; k < 3; ++k) {
      states[k] = random_buffer(random, DType::f32, count, 0.1f);
      const bool is_square = k == 1 || rule == OptimizerRule::rmsprop || rule == OptimizerRule::adagrad;
      for (int64_t i = 0; is_square && i < count; ++i) states[k].set(i, states[k].get(i) * states[k].get(i));
    }
    problem.states.push_back(states);
  }
  return problem;
}

std::vector<OptimizerParameter> parameters_of(const Problem& problem, Outputs& out) {
  std::vector<OptimizerParameter> parameters;
  int64_t chunks = 0;
  for (size_t j = 0; j < problem.parameters.size(); ++j) {
    const int64_t count = problem.parameters[j].count();
    parameters.push_back({out[j].data(), problem.dtype, problem.gradients[j].data(), problem.gradient_dtype, count,
                          problem.scalars, chunks});
    chunks += (count + kOptimizerChunk - 1) / kOptimizerChunk;
  }
  return parameters;
}

/// Gives each parameter room for its norms.
std::vector<double> add_norms(std::vector<OptimizerParameter>& parameters) {
  const OptimizerParameter& last = parameters.back();
  std::vector<double> norms(static_cast<size_t>(2 * (last.chunks_before + last.count / kOptimizerChunk + 1)));
  for (OptimizerParameter& of : parameters) of.norms = norms.data() + 2 * of.chunks_before;
  return norms;
}

Outputs run_32bit(const Problem& problem, const Kernels& k, const Context& c) {
  Outputs out = problem.parameters;
  for (const auto& states : problem.states) out.insert(out.end(), states.begin(), states.end());
  std::vector<OptimizerParameter> parameters = parameters_of(problem, out);
  const std::vector<double> norms = add_norms(parameters);
  std::vector<OptimizerJob32Bit> jobs;
  const int used = states_of(problem.rule);
  for (size_t j = 0; j < parameters.size(); ++j) {
    Buffer* states = &out[parameters.size() + 3 * j];
    jobs.push_back({parameters[j], states[0].as<float>(), used > 1 ? states[1].as<float>() : nullptr,
                    used > 2 ? states[2].as<float>() : nullptr});
  }
  k.optimizer_step_32bit(c, {problem.rule, jobs.data(), static_cast<int64_t>(jobs.size())});
  return out;
}

Outputs run_8bit(const Problem& problem, const Kernels& k, const Context& c) {
  Outputs out = problem.parameters;
  for (const auto& states : problem.states)
    for (size_t s = 0; s < 3; ++s) {
      const int64_t count = states[s].count();
      Buffer codes(DType::u8, count), absmax(DType::f32, quant::block_count(count, kStateBlock));
      const auto& map = s == 1 ? quant::kDynamicUnsigned : quant::kDynamicSigned;
      reference::table().quantize_8bit(
          {}, {states[s].data(), DType::f32, count, kStateBlock, map.data(), codes.as<uint8_t>(), absmax.as<float>()});
      out.push_back(codes);
      out.push_back(absmax);
    }
  std::vector<OptimizerParameter> parameters = parameters_of(problem, out);
  const std::vector<double> norms = add_norms(parameters);
  std::vector<OptimizerJob8Bit> jobs;
  const int used = states_of(problem.rule);
  for (size_t j = 0; j < parameters.size(); ++j) {
    Buffer* s = &out[parameters.size() + 6 * j];
    OptimizerJob8Bit job{parameters[j], s[0].as<uint8_t>(), s[1].as<float>()};
    if (used > 1) job.codes2 = s[2].as<uint8_t>(), job.absmax2 = s[3].as<float>();
    if (used > 2) job.codes3 = s[4].as<uint8_t>(), job.absmax3 = s[5].as<float>();
    jobs.push_back(job);
  }
  k.optimizer_step_8bit(c, {problem.rule, jobs.data(), static_cast<int64_t>(jobs.size()), quant::kDynamicSigned.data(),
                            quant::kDynamicUnsigned.data()});
  return out;
}

void check_both(const Problem& problem, const std::string& what) {
  const std::string name = what + " rule " + std::to_string(int(problem.rule)) + " " +
                           std::string(name_of(problem.dtype)) + " " + std::string(name_of(problem.gradient_dtype));
  check({"optimizer_step_32bit " + name, [&](const Kernels& k, const Context& c) { return run_32bit(problem, k, c); }});
  check({"optimizer_step_8bit " + name, [&](const Kernels& k, const Context& c) { return run_8bit(problem, k, c); }});
}

const std::vector<int64_t> kManyCounts{1, 5, 16, 0, 255, 256, 257, 1000, 16384, 16385, 40001};

TEST(OptimizerStep, AgreesForAnyType) {
  Random random(1);
  for (const OptimizerRule rule : kRules)
    for (const DType dtype : kFloatTypes)
      for (const DType gradient : kFloatTypes)
        check_both(make_problem(random, rule, dtype, gradient, {1, 37, 0, 256, 600}), "any type");
}

TEST(OptimizerStep, AgreesForAnySize) {
  Random random(8);
  for (const OptimizerRule rule : kRules)
    for (const auto& [dtype, gradient] : {std::pair{DType::bf16, DType::f32},
                                          {DType::bf16, DType::bf16},
                                          {DType::f16, DType::f16},
                                          {DType::f32, DType::f32}})
      check_both(make_problem(random, rule, dtype, gradient, kManyCounts), "any size");
}

/// So many chunks that a thread takes several in a row, across parameters.
TEST(OptimizerStep, AgreesForManyChunks) {
  Random random(10);
  check_both(make_problem(random, OptimizerRule::adam, DType::bf16, DType::bf16, {700000, 5, 400000, 777}), "many");
}

TEST(OptimizerStep, AgreesOnSpecialGradients) {
  Random random(2);
  constexpr std::array specials{0.0f, -0.0f, NAN, INFINITY, -INFINITY, 1e-45f, -1e-30f, 1e30f, 65504.0f};
  for (const OptimizerRule rule : kRules)
    for (const auto& [dtype, gradient] : {std::pair{DType::f32, DType::f32},
                                          {DType::f32, DType::bf16},
                                          {DType::f32, DType::f16},
                                          {DType::f16, DType::f16},
                                          {DType::bf16, DType::bf16}})
      for (const uint64_t every : {2, 300}) {
        Problem problem = make_problem(random, rule, dtype, gradient, {3000});
        for (int64_t i = 0; i < 3000; ++i)
          if (random.next() % every == 0) problem.gradients[0].set(i, specials[random.next() % specials.size()]);
        check_both(problem, "specials");
      }
}

TEST(OptimizerStep, AgreesWhereNothingMoves) {
  Random random(3);
  for (const OptimizerRule rule : kRules) {
    Problem problem = make_problem(random, rule, DType::f32, DType::f32, {600});
    for (int64_t i = 0; i < 600; ++i) {
      problem.gradients[0].set(i, 0);
      for (Buffer& state : problem.states[0]) state.set(i, i < 300 ? 0.0f : 1e-39f);
    }
    check_both(problem, "zeros");
  }
}

TEST(OptimizerStep, TrustRatiosAgreeToTheBit) {
  Random random(4);
  for (const OptimizerRule rule : kRules)
    for (const DType dtype : kFloatTypes) {
      Problem problem = make_problem(random, rule, dtype, DType::f32, {5, 0, 600, 16385});
      problem.scalars.max_unorm = 0.02f;
      problem.scalars.unorm_scale = 0.3f;
      check_both(problem, "trust ratio");
    }
}

TEST(OptimizerStep, ATrustRatioBoundsTheMove) {
  Random random(5);
  Problem problem = make_problem(random, OptimizerRule::momentum, DType::f32, DType::f32, {5000});
  problem.scalars.coupled_decay = 0;
  problem.scalars.rate = 1;
  problem.scalars.max_unorm = 0.01f;
  const Outputs out = run_32bit(problem, reference::table(), {});
  double moved = 0, size = 0;
  for (int64_t i = 0; i < 5000; ++i) {
    const double before = problem.parameters[0].get(i);
    moved += (out[0].get(i) - before) * (out[0].get(i) - before);
    size += before * before;
  }
  EXPECT_NEAR(std::sqrt(moved), 0.01 * std::sqrt(size), 1e-4 * std::sqrt(size));
}

TEST(OptimizerStep, SpoiledElementsStayAlone) {
  Random random(6);
  for (const OptimizerRule rule : kRules) {
    Problem good = make_problem(random, rule, DType::f32, DType::f32, {512});
    good.gradients[0].set(100, 0);
    Problem spoiled = good;
    spoiled.gradients[0].set(100, NAN);
    const Outputs expected = run_8bit(good, reference::table(), {}), found = run_8bit(spoiled, reference::table(), {});
    EXPECT_EQ(found[0].get(100), good.parameters[0].get(100));
    EXPECT_EQ(found[1].get(100), 127) << "state 1 of the spoiled element is zero";
    for (int64_t i = 0; i < 512; ++i)
      EXPECT_EQ(i == 100 ? good.parameters[0].get(i) : expected[0].get(i), found[0].get(i)) << i;
    for (int64_t i = 256; i < 512; ++i) EXPECT_EQ(expected[1].get(i), found[1].get(i)) << i;
  }
}

TEST(OptimizerStep, NegativeStatesKeepTheirSign) {
  Problem problem{OptimizerRule::momentum, DType::f32, DType::f32, {.rate = 1, .beta1 = 0.9f}, {}, {}, {}};
  problem.parameters.emplace_back(DType::f32, 256);
  problem.gradients.emplace_back(DType::f32, 256);
  for (int64_t i = 0; i < 256; ++i) {
    problem.parameters[0].set(i, 0);
    problem.gradients[0].set(i, i == 0 ? 1.0f : i % 2 ? -1e-9f : 1e-9f);
  }
  std::array<Buffer, 3> zeros{Buffer(DType::f32, 256), Buffer(DType::f32, 256), Buffer(DType::f32, 256)};
  for (Buffer& state : zeros)
    for (int64_t i = 0; i < 256; ++i) state.set(i, 0);
  problem.states.push_back(zeros);
  const Outputs out = run_8bit(problem, reference::table(), {});
  EXPECT_EQ(out[1].get(1), 126);
  EXPECT_EQ(out[1].get(2), 127);
  check_both(problem, "signs");
}

/// `center` with its neighbours, of both signs.
void add_neighbours(std::vector<float>& values, float center) {
  float low = center, high = center;
  for (int i = 0; i < 3; ++i, low = std::nextafterf(low, -2.0f), high = std::nextafterf(high, 2.0f))
    for (const float value : {low, -low, high, -high}) values.push_back(value);
}

/// Steps that forget: the gradient becomes state 1 and its square state 2, so that both maps' midpoints and codes are
/// met, or nearly so, at several magnitudes, beside zeros and denormals.
TEST(OptimizerStep, DecidesMidpointsExactly) {
  for (const float absmax : {1.0f, 0.0173f, 3.0f, 1e15f, 1e-17f})
    for (const OptimizerRule rule : {OptimizerRule::adam, OptimizerRule::ademamix, OptimizerRule::momentum}) {
      std::vector<float> values{0.0f, -0.0f, 1e-45f, -1e-45f, -1e-39f, 1.1754944e-38f};
      for (const auto* map : {&quant::kDynamicSigned, &quant::kDynamicUnsigned})
        for (size_t i = 0; i < 256; ++i) {
          const float midpoint = ((*map)[i] + (*map)[std::min<size_t>(i + 1, 255)]) * 0.5f;
          for (const float center : {(*map)[i], midpoint})
            add_neighbours(values, map == &quant::kDynamicSigned ? center : std::sqrt(center));
        }
      for (size_t i = 0; i < values.size(); i += 256) values.insert(values.begin() + static_cast<long>(i), 1.0f);
      const auto count = static_cast<int64_t>(values.size());
      Random random(9);
      Problem problem = make_problem(random, rule, DType::f32, DType::f32, {count});
      OptimizerScalars& c = problem.scalars;
      c.gradient_scale = 1;
      c.beta1 = c.beta2 = c.beta3 = 0;
      c.coupled_decay = 0;
      for (int64_t i = 0; i < count; ++i) problem.gradients[0].set(i, values[static_cast<size_t>(i)] * absmax);
      check_both(problem, "midpoints");
    }
}

TEST(SumSquares, AgreesToTheBit) {
  Random random(7);
  for (const DType dtype : kFloatTypes) {
    std::vector<Buffer> arrays;
    std::vector<SumSquaresJob> jobs;
    int64_t chunks = 0;
    for (const int64_t count : kManyCounts) {
      arrays.push_back(random_buffer(random, dtype, count));
      jobs.push_back({nullptr, dtype, count, chunks});
      chunks += (count + kOptimizerChunk - 1) / kOptimizerChunk;
    }
    for (size_t j = 0; j < jobs.size(); ++j) jobs[j].x = arrays[j].data();
    const auto run = [&](const Kernels& k, const Context& c) {
      std::vector<double> partials(static_cast<size_t>(chunks)), sums(jobs.size());
      k.sum_squares(c, {jobs.data(), static_cast<int64_t>(jobs.size()), partials.data(), sums.data()});
      Outputs out{Buffer(DType::u8, static_cast<int64_t>(sums.size() * sizeof(double)))};
      std::memcpy(out[0].data(), sums.data(), sums.size() * sizeof(double));
      return out;
    };
    check({"sum_squares " + std::string(name_of(dtype)), run});
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu::testing
