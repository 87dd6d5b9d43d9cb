// Lists of rows are made on the host, which the sizes of the experts' products wait for; each expert's rows are
// gathered, and added to the sum in the experts' order.
#include "ops/experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/gradient.h"

namespace nibble::ops {
namespace {

using autograd::Tape;
using autograd::Var;

template <typename T>
Tensor uploaded(const Backend& backend, DType dtype, const std::vector<T>& values) {
  Tensor tensor = backend.empty(dtype, {static_cast<int64_t>(values.size())});
  backend.upload(tensor.data(), values.data(), tensor.size_bytes());
  return tensor;
}

template <typename T>
std::vector<T> downloaded(const Backend& backend, const Tensor& tensor) {
  std::vector<T> values(static_cast<size_t>(tensor.count()));
  backend.download(values.data(), tensor.data(), tensor.size_bytes());
  return values;
}

Tensor zeros(const Backend& backend, Shape shape) {
  Tensor tensor = backend.empty(DType::f32, std::move(shape));
  backend.fill_zero(tensor.data(), tensor.size_bytes());
  return tensor;
}

/// Rows of x (f32), of so many columns, as a matrix of their own.
Tensor gathered(const Backend& backend, const Tensor& x, const Tensor& rows, int64_t cols) {
  const int64_t count = rows.count();
  Tensor out = backend.empty(DType::f32, {count, cols});
  backend.kernels().embed(backend.context_for(count * cols),
                          {x.data(), DType::f32, rows.as<int32_t>(), count, cols, 1, out.data()});
  return out;
}

/// to row rows[i] += weights[i] * from row i.
void scatter(const Backend& backend, const Tensor& from, const Tensor& rows, const Tensor& weights, float* to) {
  const int64_t count = rows.count(), cols = from.dim(1);
  backend.kernels().scatter_add_rows(backend.context_for(count * cols),
                                     {from.as<float>(), rows.as<int32_t>(), weights.as<float>(), count, cols, to});
}

/// One expert's share of the sum, as the way back needs it.
struct Share {
  Var output;
  Tensor rows, places, weights;
};

Tensor ones(const Backend& backend, int64_t count) {
  return uploaded(backend, DType::f32, std::vector<float>(static_cast<size_t>(count), 1.0f));
}

void share_backward(const Backend& backend, const Share& share, const Tensor& dy, float* dweights) {
  const int64_t count = share.rows.count(), cols = dy.dim(1);
  Tensor dots = backend.empty(DType::f32, {count, 1});
  backend.kernels().dot_rows(
      backend.context_for(count * cols),
      {share.output->value.as<float>(), share.rows.as<int32_t>(), dy.as<float>(), count, cols, dots.as<float>()});
  scatter(backend, dots, share.places, ones(backend, count), dweights);
  if (!share.output->requires_grad) return;
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  Tensor doutput = zeros(backend, {count, cols});
  scatter(backend, gathered(backend, dy, share.rows, cols), uploaded(backend, DType::i32, numbers), share.weights,
          doutput.as<float>());
  add_gradient(backend, share.output, std::move(doutput));
}

/// Softmax of each row.
std::vector<double> probabilities_of(const Backend& backend, const Tensor& logits) {
  const auto values = downloaded<float>(backend, logits);
  std::vector<double> p(values.begin(), values.end());
  const auto experts = logits.dim(1);
  for (auto row = p.begin(); row != p.end(); row += experts) {
    const double largest = *std::max_element(row, row + experts);
    std::transform(row, row + experts, row, [&](double x) { return std::exp(x - largest); });
    const double sum = std::accumulate(row, row + experts, 0.0);
    std::transform(row, row + experts, row, [&](double x) { return x / sum; });
  }
  return p;
}

}  // namespace

void ExpertLoad::add(const Backend& backend, const Tensor& logits, const Routing& routing) {
  const size_t experts = routing.rows.size();
  visits.resize(experts);
  probabilities.resize(experts);
  const std::vector<double> p = probabilities_of(backend, logits);
  for (size_t i = 0; i < p.size(); ++i) probabilities[i % experts] += p[i];
  for (size_t e = 0; e < experts; ++e) visits[e] += static_cast<double>(routing.rows[e].size());
  tokens += logits.dim(0);
}

double ExpertLoad::loss() const {
  if (tokens == 0) return 0;
  const double sum = std::inner_product(visits.begin(), visits.end(), probabilities.begin(), 0.0);
  return static_cast<double>(visits.size()) * sum / (static_cast<double>(tokens) * static_cast<double>(tokens));
}

void record_load_gradient(Tape& tape, const Backend& backend, const Var& logits, const ExpertLoad& load, float weight) {
  if (!logits->requires_grad) return;
  tape.record([&backend, &load, logits, weight] {
    const size_t experts = load.visits.size();
    const double tokens = static_cast<double>(load.tokens), scale = weight * static_cast<double>(experts);
    const std::vector<double> p = probabilities_of(backend, logits->value);
    std::vector<float> dlogits(p.size());
    for (size_t row = 0; row < p.size(); row += experts) {
      const double mean =
          std::inner_product(load.visits.begin(), load.visits.end(), p.begin() + std::ptrdiff_t(row), 0.0);
      for (size_t e = 0; e < experts; ++e)
        dlogits[row + e] = static_cast<float>(scale * p[row + e] * (load.visits[e] - mean) / (tokens * tokens));
    }
    Tensor gradient = backend.empty(DType::f32, logits->value.shape());
    backend.upload(gradient.data(), dlogits.data(), gradient.size_bytes());
    add_gradient(backend, logits, std::move(gradient));
  });
}

Routing route_experts(Tape& tape, const Backend& backend, const Var& logits, int64_t top_k, bool is_normalized) {
  const int64_t tokens = logits->value.dim(0), experts = logits->value.dim(1);
  Tensor ids = backend.empty(DType::i32, {tokens, top_k});
  Routing routing;
  routing.weights = result_of(tape, backend.empty(DType::f32, {tokens, top_k}), {logits.get()});
  backend.kernels().route_experts(backend.context_for(tokens * experts),
                                  {logits->value.as<float>(), tokens, experts, top_k, is_normalized, ids.as<int32_t>(),
                                   routing.weights->value.as<float>()});
  routing.rows.resize(static_cast<size_t>(experts));
  routing.places.resize(static_cast<size_t>(experts));
  const auto chosen = downloaded<int32_t>(backend, ids);
  for (size_t place = 0; place < chosen.size(); ++place) {
    routing.rows[static_cast<size_t>(chosen[place])].push_back(
        static_cast<int32_t>(static_cast<int64_t>(place) / top_k));
    routing.places[static_cast<size_t>(chosen[place])].push_back(static_cast<int32_t>(place));
  }
  if (routing.weights->requires_grad)
    tape.record([&backend, logits, ids, weights = routing.weights, tokens, experts, top_k, is_normalized] {
      if (!weights->grad) return;
      Tensor dlogits = backend.empty(DType::f32, {tokens, experts});
      backend.kernels().route_experts_gradient(backend.context_for(tokens * experts),
                                               {logits->value.as<float>(), tokens, experts, top_k, is_normalized,
                                                ids.as<int32_t>(), weights->grad.as<float>(), dlogits.as<float>()});
      add_gradient(backend, logits, std::move(dlogits));
      weights->grad = {};
    });
  return routing;
}

Var take_rows(Tape& tape, const Backend& backend, const Var& x, const std::vector<int32_t>& rows) {
  const Tensor numbers = uploaded(backend, DType::i32, rows);
  Var y = result_of(tape, gathered(backend, x->value, numbers, x->value.dim(1)), {x.get()});
  if (y->requires_grad)
    tape.record([&backend, x, y, numbers] {
      if (!y->grad) return;
      scatter(backend, y->grad, numbers, ones(backend, numbers.count()), gradient_sum_of(backend, x));
      y->grad = {};
    });
  return y;
}

Var sum_experts(Tape& tape, const Backend& backend, const Routing& routing, const std::vector<Var>& outputs,
                int64_t cols) {
  const int64_t tokens = routing.weights->value.dim(0);
  Var y = autograd::constant(zeros(backend, {tokens, cols}));
  std::vector<Share> shares;
  for (size_t e = 0; e < outputs.size(); ++e) {
    if (!outputs[e]) continue;
    y->requires_grad = y->requires_grad || outputs[e]->requires_grad;
    const Tensor places = uploaded(backend, DType::i32, routing.places[e]);
    shares.push_back({outputs[e], uploaded(backend, DType::i32, routing.rows[e]), places,
                      gathered(backend, routing.weights->value, places, 1)});
    scatter(backend, outputs[e]->value, shares.back().rows, shares.back().weights, y->value.as<float>());
  }
  y->requires_grad = tape.is_recording() && (y->requires_grad || routing.weights->requires_grad);
  if (y->requires_grad)
    tape.record([&backend, y, shares = std::move(shares), total = routing.weights] {
      Tensor gradient = zeros(backend, total->value.shape());
      for (const Share& share : shares) share_backward(backend, share, y->grad, gradient.as<float>());
      add_gradient(backend, total, std::move(gradient));
      y->grad = {};
    });
  return y;
}

}  // namespace nibble::ops
