// Optimizer steps and sums of squares on the GPU: the reference's bits for any rule, type, size, alignment and special
// value.
#include <array>
#include <limits>

#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {
namespace {

constexpr std::array kRules{OptimizerRule::adam, OptimizerRule::ademamix, OptimizerRule::momentum,
                            OptimizerRule::lion, OptimizerRule::rmsprop,  OptimizerRule::adagrad};

int states_of(OptimizerRule rule) { return rule == OptimizerRule::ademamix ? 3 : rule == OptimizerRule::adam ? 2 : 1; }
int64_t chunks_of(int64_t count) { return (count + kOptimizerChunk - 1) / kOptimizerChunk; }

/// One parameter of a call, with states in both widths. Codes and absmax stand at 2k and 2k + 1.
struct Parameter {
  Array data, gradient;
  std::array<Array, 3> states;
  std::array<Array, 6> coded;
  Array norms;
};

struct Problem {
  OptimizerRule rule;
  OptimizerScalars scalars;
  std::vector<Parameter> parameters;
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

const float* book_of(int state) { return state == 1 ? quant::kDynamicUnsigned.data() : quant::kDynamicSigned.data(); }

void encode_states(Parameter& parameter) {
  for (int k = 0; k < 3; ++k) {
    const auto at = static_cast<size_t>(k);
    Array &state = parameter.states[at], &codes = parameter.coded[2 * at], &absmax = parameter.coded[2 * at + 1];
    reference::table().quantize_8bit({.pool = &host_threads()},
                                     {state.host(), DType::f32, state.count(), kStateBlock, book_of(k),
                                      codes.host<uint8_t>(), absmax.host<float>()});
  }
}

Parameter make_parameter(Random& random, OptimizerRule rule, DType dtype, DType gradient, int64_t count,
                         int64_t offset) {
  Parameter parameter;
  parameter.data = random_array(random, dtype, count, 1, offset);
  parameter.gradient = random_array(random, gradient, count, 0.1f, offset);
  for (size_t k = 0; k < 3; ++k) {
    Array& state = parameter.states[k] = random_array(random, DType::f32, count, 0.1f, offset);
    const bool is_square = k == 1 || rule == OptimizerRule::rmsprop || rule == OptimizerRule::adagrad;
    for (int64_t i = 0; is_square && i < count; ++i) state.set(i, state.get(i) * state.get(i));
    parameter.coded[2 * k] = Array(DType::u8, count, offset);
    parameter.coded[2 * k + 1] = Array(DType::f32, quant::block_count(count, kStateBlock), offset);
  }
  parameter.norms = Array(DType::f32, 4 * chunks_of(count), 0);
  encode_states(parameter);
  return parameter;
}

/// The jobs of a call on arrays that `data` and `typed` find in one of the two memories.
template <typename Data>
OptimizerParameter parameter_of(Parameter& p, const OptimizerScalars& scalars, int64_t chunks_before, Data&& data) {
  return {data(p.data),   p.data.dtype(), data(p.gradient), p.gradient.dtype(),
          p.data.count(), scalars,        chunks_before,    static_cast<double*>(data(p.norms))};
}

template <typename Data>
void run_32bit(const Kernels& k, const Context& context, Problem& problem, Data&& data) {
  std::vector<OptimizerJob32Bit> jobs;
  int64_t chunks = 0;
  const int used = states_of(problem.rule);
  for (Parameter& p : problem.parameters) {
    const auto state = [&](int i) {
      return i < used ? static_cast<float*>(data(p.states[static_cast<size_t>(i)])) : nullptr;
    };
    jobs.push_back({parameter_of(p, problem.scalars, chunks, data), state(0), state(1), state(2)});
    chunks += chunks_of(p.data.count());
  }
  k.optimizer_step_32bit(context, {problem.rule, jobs.data(), static_cast<int64_t>(jobs.size())});
}

template <typename Data>
void run_8bit(const Kernels& k, const Context& context, Problem& problem, Data&& data) {
  std::vector<OptimizerJob8Bit> jobs;
  int64_t chunks = 0;
  const int used = states_of(problem.rule);
  for (Parameter& p : problem.parameters) {
    const auto codes = [&](size_t i) { return static_cast<uint8_t*>(data(p.coded[2 * i])); };
    const auto absmax = [&](size_t i) { return static_cast<float*>(data(p.coded[2 * i + 1])); };
    OptimizerJob8Bit job{parameter_of(p, problem.scalars, chunks, data), codes(0), absmax(0)};
    if (used > 1) job.codes2 = codes(1), job.absmax2 = absmax(1);
    if (used > 2) job.codes3 = codes(2), job.absmax3 = absmax(2);
    jobs.push_back(job);
    chunks += chunks_of(p.data.count());
  }
  k.optimizer_step_8bit(context,
                        {problem.rule, jobs.data(), static_cast<int64_t>(jobs.size()), book_of(0), book_of(1)});
}

class OptimizerGpuTest : public GpuTest {
 protected:
  void compare(Array& expected, Array& found, const std::string& label) {
    found.download(stream(), label);
    expect_close(expected, found, 0, label);
  }

  /// One step in each width, here and in the reference.
  void check(const Problem& problem, const std::string& what) {
    const std::string label = what + " rule " + std::to_string(static_cast<int>(problem.rule));
    const auto on_host = [](Array& array) { return array.host(); };
    const auto on_device = [&](Array& array) { return array.device(stream()); };
    for (const int bits : {32, 8}) {
      Problem expected = problem, found = problem;
      for (Parameter& p : found.parameters) {
        p.data.upload(stream());
        p.gradient.upload(stream());
        for (Array& array : p.states) array.upload(stream());
        for (Array& array : p.coded) array.upload(stream());
      }
      const auto run = [&](const Kernels& k, const Context& c, Problem& of, auto data) {
        bits == 8 ? run_8bit(k, c, of, data) : run_32bit(k, c, of, data);
      };
      run(reference(), cpu, expected, on_host);
      run(cuda(), context, found, on_device);
      finish(label);
      for (size_t j = 0; j < expected.parameters.size(); ++j) {
        const std::string at = label + " " + std::to_string(bits) + " bits, parameter " + std::to_string(j);
        Parameter &a = expected.parameters[j], &b = found.parameters[j];
        compare(a.data, b.data, at);
        for (size_t k = 0; k < 3; ++k) compare(a.states[k], b.states[k], at + " state");
        for (size_t k = 0; k < 6; ++k) compare(a.coded[k], b.coded[k], at + (k % 2 ? " absmax" : " codes"));
        if (HasFatalFailure()) return;
      }
    }
  }

  Problem make_problem(Random& random, OptimizerRule rule, DType dtype, DType gradient,
                       const std::vector<int64_t>& counts, int64_t offset = 1) {
    Problem problem{rule, scalars_of(rule), {}};
    for (const int64_t count : counts)
      problem.parameters.push_back(make_parameter(random, rule, dtype, gradient, count, offset));
    return problem;
  }
};

TEST_F(OptimizerGpuTest, AgreesForAnyTypeAndAlignment) {
  Random random(1);
  for (const OptimizerRule rule : kRules)
    for (const DType dtype : kFloatTypes)
      for (const DType gradient : kFloatTypes)
        for (const int64_t offset : {0, 1, 8})
          check(make_problem(random, rule, dtype, gradient, {1, 37, 0, 256, 600, 5000}, offset), "any type");
}

TEST_F(OptimizerGpuTest, AgreesForAnySize) {
  Random random(2);
  const std::vector<int64_t> counts{1, 5, 16, 0, 255, 256, 257, 1000, 16384, 16385, 40001, 100000, 0};
  for (const OptimizerRule rule : kRules)
    for (const int64_t offset : {0, 1})
      check(make_problem(random, rule, DType::bf16, DType::f32, counts, offset), "any size");
}

TEST_F(OptimizerGpuTest, ManyParametersInOneCall) {
  Random random(3);
  for (const OptimizerRule rule : {OptimizerRule::adam, OptimizerRule::lion})
    check(make_problem(random, rule, DType::f32, DType::f32, std::vector<int64_t>(1000, 300), 0), "many");
}

TEST_F(OptimizerGpuTest, AgreesOnSpecialGradients) {
  Random random(4);
  constexpr std::array specials{0.0f, -0.0f, NAN, INFINITY, -INFINITY, 1e-45f, -1e-30f, 1e30f, 65504.0f, -1e18f};
  for (const OptimizerRule rule : kRules)
    for (const DType gradient : kFloatTypes)
      for (const uint64_t every : {2, 300}) {
        Problem problem = make_problem(random, rule, DType::f32, gradient, {30000}, 0);
        for (int64_t i = 0; i < 30000; ++i)
          if (random.next() % every == 0)
            problem.parameters[0].gradient.set(i, specials[random.next() % specials.size()]);
        check(problem, "specials");
      }
}

TEST_F(OptimizerGpuTest, AgreesWhereNothingMoves) {
  Random random(5);
  for (const OptimizerRule rule : kRules) {
    Problem problem = make_problem(random, rule, DType::f32, DType::f32, {768}, 0);
    Parameter& p = problem.parameters[0];
    for (int64_t i = 0; i < 768; ++i) {
      p.gradient.set(i, i % 3 ? 0.0f : -0.0f);
      p.data.set(i, i % 2 ? p.data.get(i) : -0.0f);
      for (Array& state : p.states) state.set(i, i < 300 ? 0.0f : i < 512 ? 1e-39f : -0.0f);
    }
    encode_states(p);
    check(problem, "zeros");
  }
}

/// Numbers of every size take every code, and the quotient through its whole range.
TEST_F(OptimizerGpuTest, AgreesForNumbersOfEverySize) {
  Random random(6);
  for (const OptimizerRule rule : kRules) {
    Problem problem = make_problem(random, rule, DType::f32, DType::f32, {200000}, 0);
    Parameter& p = problem.parameters[0];
    for (int64_t i = 0; i < 200000; ++i) {
      const auto size = [&](int range) {
        return std::ldexp(p.gradient.get(i) * 10,
                          static_cast<int>(random.next() % static_cast<uint64_t>(range)) - range + 4);
      };
      p.gradient.set(i, size(i % 2 ? 24 : 80));
      p.states[0].set(i, rule == OptimizerRule::rmsprop ? std::abs(size(28)) : size(28));
      p.states[1].set(i, std::abs(size(i % 5 ? 28 : 110)));
      p.states[2].set(i, size(28));
    }
    encode_states(p);
    check(problem, "every size");
  }
}

TEST_F(OptimizerGpuTest, TrustRatiosAgreeToTheBit) {
  Random random(7);
  for (const OptimizerRule rule : kRules)
    for (const DType dtype : kFloatTypes) {
      Problem problem = make_problem(random, rule, dtype, DType::f32, {5, 0, 600, 16385, 50000});
      problem.scalars.max_unorm = 0.02f;
      problem.scalars.unorm_scale = 0.3f;
      problem.parameters[2].gradient.set(17, NAN);
      check(problem, "trust ratio");
    }
}

/// A map without a zero, and one so crowded that a cell holds many codes.
TEST_F(OptimizerGpuTest, AgreesForOtherMaps) {
  Random random(8);
  std::array<float, 256> uniform, crowded;
  for (int i = 0; i < 256; ++i) {
    uniform[static_cast<size_t>(i)] = (static_cast<float>(i) - 127.5f) / 127.5f;
    crowded[static_cast<size_t>(i)] = 0.5f + static_cast<float>(i) * 1e-5f;
  }
  for (const auto& book : {uniform, crowded}) {
    Problem problem = make_problem(random, OptimizerRule::adam, DType::f32, DType::f32, {5000}, 0), found = problem;
    Parameter &a = problem.parameters[0], &b = found.parameters[0];
    const auto run = [&](const Kernels& k, const Context& c, Parameter& p, auto data) {
      OptimizerJob8Bit job{parameter_of(p, problem.scalars, 0, data), static_cast<uint8_t*>(data(p.coded[0])),
                           static_cast<float*>(data(p.coded[1])), static_cast<uint8_t*>(data(p.coded[2])),
                           static_cast<float*>(data(p.coded[3]))};
      k.optimizer_step_8bit(c, {problem.rule, &job, 1, book.data(), book.data()});
    };
    for (Array* array : {&b.data, &b.gradient, &b.coded[0], &b.coded[1], &b.coded[2], &b.coded[3]})
      array->upload(stream());
    run(reference(), cpu, a, [](Array& array) { return array.host(); });
    run(cuda(), context, b, [&](Array& array) { return array.device(stream()); });
    finish("other maps");
    for (size_t k = 0; k < 4; ++k) compare(a.coded[k], b.coded[k], "other maps");
    compare(a.data, b.data, "other maps");
  }
}

TEST_F(OptimizerGpuTest, SumSquaresAgreesToTheBit) {
  Random random(9);
  for (const DType dtype : kFloatTypes)
    for (const int64_t offset : {0, 1}) {
      std::vector<Array> arrays;
      int64_t chunks = 0;
      std::vector<SumSquaresJob> on_host, on_device;
      for (const int64_t count : {1, 5, 16, 0, 255, 1000, 16384, 16385, 600001, 0})
        arrays.push_back(random_array(random, dtype, count, 1, offset));
      for (Array& array : arrays) {
        array.upload(stream());
        on_host.push_back({array.host(), dtype, array.count(), chunks});
        on_device.push_back({array.device(stream()), dtype, array.count(), chunks});
        chunks += chunks_of(array.count());
      }
      const auto count = static_cast<int64_t>(arrays.size());
      std::vector<double> partials(static_cast<size_t>(chunks)), sums(arrays.size()), found(arrays.size());
      Array device_partials(DType::f32, 2 * chunks, 0), device_sums(DType::f32, 2 * count, 0);
      reference().sum_squares(cpu, {on_host.data(), count, partials.data(), sums.data()});
      cuda().sum_squares(context, {on_device.data(), count, static_cast<double*>(device_partials.device(stream())),
                                   static_cast<double*>(device_sums.device(stream()))});
      finish("sum_squares");
      device_sums.download(stream(), "sum_squares");
      std::memcpy(found.data(), device_sums.host(), found.size() * sizeof(double));
      EXPECT_EQ(sums, found) << name_of(dtype);
    }
}

}  // namespace
}  // namespace nibble::kernels::cuda::testing
