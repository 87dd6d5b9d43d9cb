// optimizer_step_32bit and optimizer_step_8bit: one element after the other; parameters are shared among threads whole.
#include <array>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"
#include "kernels/reference/optimizer_rules.h"
#include "kernels/reference/sum_squares.h"
#include "quant/encode.h"

namespace nibble::kernels::reference {
namespace {

/// One element's way through a step.
struct Element {
  float p, d;
  OptimizerStates states;
  bool is_kept = false;  // 8 bits: its states would not be finite
};

struct States32Bit {
  const OptimizerJob32Bit& job;
  OptimizerStates load(int64_t i) const {
    return {job.state1[i], job.state2 ? job.state2[i] : 0, job.state3 ? job.state3[i] : 0};
  }
  static bool is_kept(const OptimizerStates&) { return false; }
};

struct States8Bit {
  const OptimizerStep8BitArgs& args;
  const OptimizerJob8Bit& job;
  static float decode(const uint8_t* codes, const float* absmax, const float* book, int64_t i) {
    return codes ? book[codes[i]] * absmax[i / kStateBlock] : 0;
  }
  OptimizerStates load(int64_t i) const {
    return {decode(job.codes1, job.absmax1, args.code_book1, i), decode(job.codes2, job.absmax2, args.code_book2, i),
            decode(job.codes3, job.absmax3, args.code_book1, i)};
  }
  static bool is_kept(const OptimizerStates& s) {
    return !(std::isfinite(s.state1) && std::isfinite(s.state2) && std::isfinite(s.state3));
  }
};

template <typename States>
Element step_element(OptimizerRule rule, const OptimizerParameter& of, const States& states, int64_t i) {
  Element e{load(of.parameter, of.dtype, i), 0, states.load(i)};
  const float g = scaled_gradient(of.scalars, e.p, load(of.gradient, of.gradient_dtype, i));
  e.d = direction(rule, of.scalars, g, e.states);
  e.is_kept = States::is_kept(e.states);
  if (e.is_kept) e.states = {};
  return e;
}

/// The rate with its trust ratio; fills norms[0] and norms[1].
template <typename States>
float trusted_rate(OptimizerRule rule, const OptimizerParameter& of, const States& states) {
  const OptimizerScalars& c = of.scalars;
  if (!(c.max_unorm > 0)) return c.rate;
  double norms[2] = {0, 0};
  for (int64_t begin = 0; begin < of.count; begin += kOptimizerChunk) {
    SquareSum parameter, update;
    for (int64_t i = begin; i < std::min(of.count, begin + kOptimizerChunk); ++i) {
      const Element e = step_element(rule, of, states, i);
      if (e.is_kept) continue;
      parameter.add(i - begin, e.p);
      update.add(i - begin, e.d * c.unorm_scale);
    }
    norms[0] += parameter.total();
    norms[1] += update.total();
  }
  if (of.count > 0) {
    of.norms[0] = norms[0];
    of.norms[1] = norms[1];
  }
  const double bound = c.max_unorm * std::sqrt(norms[0]), norm = std::sqrt(norms[1]);
  return norm > bound ? static_cast<float>(c.rate * (bound / norm)) : c.rate;
}

void encode_block(const float* state, int64_t count, const float* book, uint8_t* codes, float* absmax) {
  *absmax = block_absmax(state, DType::f32, 0, count);
  const float inverse = quant::inverse_of(*absmax);
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = quant::encode_8bit(book, state[i] * inverse);
    if (state[i] < 0 && book[codes[i]] == 0 && codes[i] > 0) --codes[i];
  }
}

void step_block(const OptimizerStep8BitArgs& args, const OptimizerJob8Bit& job, float rate, int64_t b) {
  const OptimizerParameter& of = job.of;
  const int64_t begin = b * kStateBlock, count = std::min(kStateBlock, of.count - begin);
  std::array<std::array<float, kStateBlock>, 3> states;
  for (int64_t i = 0; i < count; ++i) {
    const Element e = step_element(args.rule, of, States8Bit{args, job}, begin + i);
    if (!e.is_kept) store(of.parameter, of.dtype, begin + i, moved(of.scalars, rate, e.p, e.d));
    const auto at = static_cast<size_t>(i);
    states[0][at] = e.states.state1;
    states[1][at] = e.states.state2;
    states[2][at] = e.states.state3;
  }
  encode_block(states[0].data(), count, args.code_book1, job.codes1 + begin, job.absmax1 + b);
  if (job.codes2) encode_block(states[1].data(), count, args.code_book2, job.codes2 + begin, job.absmax2 + b);
  if (job.codes3) encode_block(states[2].data(), count, args.code_book1, job.codes3 + begin, job.absmax3 + b);
}

}  // namespace

void optimizer_step_32bit(const Context& context, const OptimizerStep32BitArgs& args) {
  for_each(context, args.count, 1, [&](int64_t j) {
    const OptimizerJob32Bit& job = args.jobs[j];
    const OptimizerParameter& of = job.of;
    const float rate = trusted_rate(args.rule, of, States32Bit{job});
    for (int64_t i = 0; i < of.count; ++i) {
      const Element e = step_element(args.rule, of, States32Bit{job}, i);
      job.state1[i] = e.states.state1;
      if (job.state2) job.state2[i] = e.states.state2;
      if (job.state3) job.state3[i] = e.states.state3;
      store(of.parameter, of.dtype, i, moved(of.scalars, rate, e.p, e.d));
    }
  });
}

void optimizer_step_8bit(const Context& context, const OptimizerStep8BitArgs& args) {
  for_each(context, args.count, 1, [&](int64_t j) {
    const OptimizerJob8Bit& job = args.jobs[j];
    const float rate = trusted_rate(args.rule, job.of, States8Bit{args, job});
    for (int64_t b = 0; b < quant::block_count(job.of.count, kStateBlock); ++b) step_block(args, job, rate, b);
  });
}

}  // namespace nibble::kernels::reference
