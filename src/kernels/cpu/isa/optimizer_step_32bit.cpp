// optimizer_step_32bit: all parameters in one parallel loop, block by block.
#include "kernels/cpu/isa/optimizer_block.h"
#include "kernels/cpu/isa/optimizer_trust.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

/// One block as fp32; close() writes it back.
template <typename Rule>
struct Block {
  const OptimizerJob32Bit& job;
  int64_t begin, count;
  BlockBuffer parameter, gradient, buffers[Rule::kStates];
  float* p;
  const float* g;
  float* states[3] = {};

  Block(const OptimizerJob32Bit& of_job, int64_t first, int64_t elements) : job(of_job), begin(first), count(elements) {
    const OptimizerParameter& of = job.of;
    p = open_block(of.parameter, of.dtype, begin, count, parameter);
    g = open_block(of.gradient, of.gradient_dtype, begin, count, gradient);
    float* const whole[3] = {job.state1, job.state2, job.state3};
    for (int k = 0; k < Rule::kStates; ++k) states[k] = open_block(whole[k], DType::f32, begin, count, buffers[k]);
  }
  void close() const {
    close_block(job.of.parameter, job.of.dtype, begin, count, p);
    float* const whole[3] = {job.state1, job.state2, job.state3};
    for (int k = 0; k < Rule::kStates; ++k) close_block(whole[k], DType::f32, begin, count, states[k]);
  }
};

template <typename Rule>
void measure_chunk(const OptimizerJob32Bit& job, int64_t chunk, SquareSum (&sums)[2]) {
  for_blocks(job.of, chunk, [&](int64_t begin, int64_t count) {
    const Block<Rule> block(job, begin, count);
    const float* const states[3] = {block.states[0], block.states[1], block.states[2]};
    measure_block<Rule, false>(job.of.scalars, count, block.p, block.g, states, sums);
  });
}

template <typename Rule>
void step_chunk(const OptimizerJob32Bit& job, float rate, int64_t chunk) {
  for_blocks(job.of, chunk, [&](int64_t begin, int64_t count) {
    const Block<Rule> block(job, begin, count);
    float absmax[3];
    step_block<Rule, false>(job.of.scalars, rate, count, block.p, block.g, block.states, absmax);
    block.close();
  });
}

}  // namespace

void optimizer_step_32bit(const Context& context, const OptimizerStep32BitArgs& args) {
  with_rule(args.rule, [&](auto rule) {
    using Rule = decltype(rule);
    for_jobs(
        context, args.jobs, args.count,
        [](const OptimizerJob32Bit& job, int64_t chunk, SquareSum(&sums)[2]) { measure_chunk<Rule>(job, chunk, sums); },
        [](const OptimizerJob32Bit& job, float rate, int64_t chunk) { step_chunk<Rule>(job, rate, chunk); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
