// optimizer_step_8bit: a block's states are decoded, stepped and encoded while they lie in the first cache.
#include "kernels/cpu/isa/optimizer_lanes.h"
#include "kernels/cpu/isa/optimizer_trust.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

/// One map, ready for both directions.
struct Map {
  Values values;
  const Encoder* encoder;
  const float* book;
  int zero_code;  // the code above 0 that stands for zero; -1: none
};

NIBBLE_SIMD Map make_map(const float* book) {
  Map map{make_values(book), &encoder_for(book), book, -1};
  for (int code = 1; code < 256; ++code)
    if (book[code] == 0) map.zero_code = code;
  return map;
}

/// The states of one job.
struct StateCodes {
  uint8_t* codes;
  float* absmax;
  const Map* map;
};

struct Maps {
  Map first, second;
#if defined(__AVX2__)
  SignedTable signed_table = load_signed_table(first.book);
#endif
  StateCodes state(const OptimizerJob8Bit& job, int k) const {
    return k == 0   ? StateCodes{job.codes1, job.absmax1, &first}
           : k == 1 ? StateCodes{job.codes2, job.absmax2, &second}
                    : StateCodes{job.codes3, job.absmax3, &first};
  }
};

/// Also zeroes what lies between the last element and the end of its vector.
[[gnu::noinline]] void decode_block(const Map& map, const uint8_t* codes, float absmax, int64_t count, float* out) {
  const Values values = map.values;
  const F32 scale = set1(absmax);
  int64_t i = 0;
  for (; i + kDecodeStep <= count; i += kDecodeStep) decode_step(values, codes + i, scale, out + i, false);
  for (; i < count; ++i) out[i] = map.book[codes[i]] * absmax;
  for (; i % kLanes != 0; ++i) out[i] = 0;
}

/// Negative states with the code of zero take the one below.
NIBBLE_SIMD void keep_signs(const float* state, int64_t count, int zero_code, uint8_t* codes) {
  int64_t i = 0;
#if defined(__AVX512F__)
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(zero_code));
  for (; i + 64 <= count; i += 64) {
    uint64_t negative = 0;
    for (int q = 0; q < 4; ++q)
      negative |= static_cast<uint64_t>(greater(set1(0), load(state + i + 16 * q))) << (16 * q);
    const __m512i found = _mm512_loadu_si512(codes + i);
    const __mmask64 lost = _mm512_mask_cmpeq_epi8_mask(negative, found, zero);
    _mm512_storeu_si512(codes + i, _mm512_mask_sub_epi8(found, lost, found, _mm512_set1_epi8(1)));
  }
#endif
  for (; i < count; ++i) codes[i] = static_cast<uint8_t>(codes[i] - (codes[i] == zero_code && state[i] < 0 ? 1 : 0));
}

/// Finite states with their absmax, to their codes; returns the absmax to store.
NIBBLE_SIMD float encode_block(const Map& map, const float* state, int64_t count, float absmax, uint8_t* codes) {
  if (absmax < 0x1p-126f) {
    __builtin_memset(codes, 0, static_cast<size_t>(count));
    return 0;
  }
  const float inverse = 1.0f / absmax;
  int64_t i = encode_run(*map.encoder, state, count, inverse, codes, false);
  for (; i < count; ++i) codes[i] = search_code(map.encoder->search, state[i] * inverse);
  if (map.zero_code > 0) keep_signs(state, count, map.zero_code, codes);
  return absmax;
}

/// One block as fp32.
template <typename Rule>
struct Block {
  BlockBuffer parameter, gradient, buffers[Rule::kStates];
  float* p;
  const float* g;
  float* states[3] = {};

  Block(const Maps& maps, const OptimizerJob8Bit& job, int64_t begin, int64_t count) {
    const OptimizerParameter& of = job.of;
    p = open_block(of.parameter, of.dtype, begin, count, parameter);
    g = open_block(of.gradient, of.gradient_dtype, begin, count, gradient);
    for (int k = 0; k < Rule::kStates; ++k) {
      const StateCodes state = maps.state(job, k);
      states[k] = buffers[k].values;
      decode_block(*state.map, state.codes + begin, state.absmax[begin / kStateBlock], count, states[k]);
    }
  }
};

template <typename Rule>
void measure_chunk(const Maps& maps, const OptimizerJob8Bit& job, int64_t chunk, SquareSum (&sums)[2]) {
  for_blocks(job.of, chunk, [&](int64_t begin, int64_t count) {
    const Block<Rule> block(maps, job, begin, count);
    const float* const states[3] = {block.states[0], block.states[1], block.states[2]};
    measure_block<Rule, true>(job.of.scalars, count, block.p, block.g, states, sums);
  });
}

/// The new states of a block to their codes.
template <typename Rule>
void encode_states(const Maps& maps, const OptimizerJob8Bit& job, int64_t begin, int64_t count,
                   float* const (&states)[3], const float (&absmax)[3]) {
  for (int k = 0; k < Rule::kStates; ++k) {
    const StateCodes state = maps.state(job, k);
    state.absmax[begin / kStateBlock] = encode_block(*state.map, states[k], count, absmax[k], state.codes + begin);
  }
}

#if defined(__AVX2__)
/// The whole blocks of a chunk.
template <typename Rule, typename T>
void step_whole_blocks(const Maps& maps, const OptimizerJob8Bit& job, float rate, int64_t begin, int64_t end) {
  GroupState groups[Rule::kStates];
  Ratios ratios;
  KeptElements<T> kept;
  T* p = static_cast<T*>(job.of.parameter);
  const T* g = static_cast<const T*>(job.of.gradient);
  GroupState* states[3] = {};
  for (int k = 0; k < Rule::kStates; ++k) states[k] = &groups[k];
  for (int64_t at = begin; at < end; at += kGroupOf<T> * kStateBlock) {
    const int64_t blocks = min_of(kGroupOf<T>, (end - at) / kStateBlock);
    for (int k = 0; k < Rule::kStates; ++k) {
      const StateCodes state = maps.state(job, k);
      groups[k].codes = state.codes + at;
      for (int64_t b = 0; b < blocks; ++b) groups[k].absmax[b] = state.absmax[at / kStateBlock + b];
    }
    start_group<Rule>(job.of.scalars, maps.signed_table, maps.second.values.table, blocks, states, p + at, g + at,
                      ratios, kept);
    if (Rule::kStates > 1) encode_group_squares<Rule>(*maps.second.encoder, blocks, groups[1], ratios);
    finish_group<Rule>(job.of.scalars, rate, *maps.first.encoder, blocks, groups[0], ratios, p + at);
    if (kept.has_any) put_back(kept, blocks * kStateBlock, p + at);
    if (Rule::kStates > 2) encode_group(*maps.first.encoder, blocks, groups[2]);
    for (int k = 0; k < Rule::kStates; ++k) {
      const StateCodes state = maps.state(job, k);
      for (int64_t b = 0; b < blocks; ++b) state.absmax[at / kStateBlock + b] = groups[k].absmax[b];
    }
  }
}

/// The chunk's elements that were stepped: those of whole blocks, if types and maps suit.
template <typename Rule>
int64_t step_whole_blocks(const Maps& maps, const OptimizerJob8Bit& job, float rate, int64_t chunk) {
  const OptimizerParameter& of = job.of;
  const int64_t begin = chunk * kOptimizerChunk, count = min_of(of.count - begin, kOptimizerChunk);
  const int64_t end = begin + count / kStateBlock * kStateBlock;
  if (of.dtype != of.gradient_dtype || !maps.first.encoder->is_mirrored) return 0;
  if (Rule::kStates > 1 && !maps.second.encoder->is_linear) return 0;
  with_type(of.dtype, of.parameter, [&]<typename T>(T*) { step_whole_blocks<Rule, T>(maps, job, rate, begin, end); });
  return end - begin;
}
#endif

template <typename Rule>
void step_chunk(const Maps& maps, const OptimizerJob8Bit& job, float rate, int64_t chunk) {
  int64_t first = 0;
#if defined(__AVX2__)
  first = chunk * kOptimizerChunk + step_whole_blocks<Rule>(maps, job, rate, chunk);
#endif
  for_blocks(job.of, chunk, [&](int64_t begin, int64_t count) {
    if (begin < first) return;
    const Block<Rule> block(maps, job, begin, count);
    float absmax[3];
    step_block<Rule, true>(job.of.scalars, rate, count, block.p, block.g, block.states, absmax);
    close_block(job.of.parameter, job.of.dtype, begin, count, block.p);
    encode_states<Rule>(maps, job, begin, count, block.states, absmax);
  });
}

}  // namespace

void optimizer_step_8bit(const Context& context, const OptimizerStep8BitArgs& args) {
  const Maps maps{make_map(args.code_book1), make_map(args.code_book2)};
  with_rule(args.rule, [&](auto rule) {
    using Rule = decltype(rule);
    for_jobs(
        context, args.jobs, args.count,
        [&](const OptimizerJob8Bit& job, int64_t chunk, SquareSum(&sums)[2]) {
          measure_chunk<Rule>(maps, job, chunk, sums);
        },
        [&](const OptimizerJob8Bit& job, float rate, int64_t chunk) { step_chunk<Rule>(maps, job, rate, chunk); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
