// oneDNN's dense bf16 matmul, with the weights in the layout that it prefers.
#include <dnnl.hpp>
#include <memory>

#include "base/half.h"
#include "bench/matmul/problem.h"

namespace nibble::bench {
namespace {

using dnnl::memory;

struct Race {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::matmul matmul;
  memory x, y;
  std::vector<memory> weights;
};

}  // namespace

void add_onednn(std::vector<Entry*>& entries, const Problem& p) {
  auto race = std::make_shared<Race>();
  const auto bf16 = memory::data_type::bf16;
  std::vector<uint16_t> w_bits, x_bits;
  for (const float value : p.w) w_bits.push_back(to_bf16(value).bits);
  for (const float value : p.x) x_bits.push_back(to_bf16(value).bits);
  const memory::desc x_desc({p.m, p.cols}, bf16, memory::format_tag::ab);
  const memory::desc any({p.cols, p.rows}, bf16, memory::format_tag::any);
  const memory::desc plain({p.cols, p.rows}, bf16, memory::format_tag::ba);
  const memory::desc y_desc({p.m, p.rows}, memory::data_type::f32, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x_desc, any, y_desc), race->engine);
  race->matmul = dnnl::matmul(description);
  race->x = memory(x_desc, race->engine);
  race->y = memory(y_desc, race->engine);
  std::copy(x_bits.begin(), x_bits.end(), static_cast<uint16_t*>(race->x.get_data_handle()));
  memory source(plain, race->engine, w_bits.data());
  const int64_t copies = copies_for(p.rows * p.cols * 2), calls = p.m == 1 ? copies : 3;
  for (int64_t i = 0; i < copies; ++i) {
    race->weights.emplace_back(description.weights_desc(), race->engine);
    dnnl::reorder(source, race->weights.back()).execute(race->stream, source, race->weights.back());
  }
  race->stream.wait();
  auto* entry = new Entry{
      {"onednn dense bf16", {}, static_cast<double>(calls)}, static_cast<double>(p.rows * p.cols) * 2, &p.w, {}};
  entry->y.resize(static_cast<size_t>(p.m * p.rows));
  entry->contender.run = [=, next = int64_t{0}]() mutable {
    for (int64_t i = 0; i < calls; ++i, next = (next + 1) % copies)
      race->matmul.execute(race->stream, {{DNNL_ARG_SRC, race->x},
                                          {DNNL_ARG_WEIGHTS, race->weights[static_cast<size_t>(next)]},
                                          {DNNL_ARG_DST, race->y}});
    race->stream.wait();
    const auto* y = static_cast<const float*>(race->y.get_data_handle());
    std::copy(y, y + entry->y.size(), entry->y.begin());
  };
  entries.push_back(entry);
}

}  // namespace nibble::bench
