// fuse_graph: runs of products in a recorded graph become decode programs, one cooperative launch each.
#include "kernels/cuda/device/program.cuh"

#include <cuda_runtime.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "device/cuda.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/entries.h"
#include "kernels/cuda/program.h"

namespace nibble::kernels::cuda {
namespace {

/// A node of the graph, and what it would be to a program.
struct Launch {
  cudaGraphNode_t node = nullptr;
  bool is_product = false;  // else attention
  ProductKind kind;
  ProgramPhase phase;  // of which it is one half
};

/// The graph's nodes in their order; empty if they are not one chain.
std::vector<cudaGraphNode_t> chain_of(cudaGraph_t graph) {
  size_t nodes = 0, edges = 0;
#if CUDART_VERSION >= 13000
  const auto get_edges = cudaGraphGetEdges;
#else
  const auto get_edges = cudaGraphGetEdges_v2;
#endif
  if (cudaGraphGetNodes(graph, nullptr, &nodes) != cudaSuccess ||
      get_edges(graph, nullptr, nullptr, nullptr, &edges) != cudaSuccess || nodes == 0 || edges != nodes - 1)
    return {};
  std::vector<cudaGraphNode_t> all(nodes), from(edges), to(edges);
  std::vector<cudaGraphEdgeData> data(edges);  // programmatic launches have some, without which the query fails
  if (cudaGraphGetNodes(graph, all.data(), &nodes) != cudaSuccess ||
      get_edges(graph, from.data(), to.data(), data.data(), &edges) != cudaSuccess)
    return {};
  std::vector<std::pair<cudaGraphNode_t, cudaGraphNode_t>> next;
  for (size_t i = 0; i < edges; ++i) next.emplace_back(from[i], to[i]);
  std::sort(next.begin(), next.end());
  std::sort(to.begin(), to.end());
  const auto first =
      std::find_if(all.begin(), all.end(), [&](auto node) { return !std::binary_search(to.begin(), to.end(), node); });
  if (first == all.end()) return {};
  std::vector<cudaGraphNode_t> chain{*first};
  while (chain.size() <= nodes) {
    const auto edge = std::lower_bound(next.begin(), next.end(), std::pair{chain.back(), cudaGraphNode_t{}});
    if (edge == next.end() || edge->first != chain.back()) break;
    chain.push_back(edge->second);
  }
  return chain.size() == nodes ? chain : std::vector<cudaGraphNode_t>{};
}

/// Nothing if it is no kernel that a program knows.
std::optional<Launch> find_launch(cudaGraphNode_t node) {
  cudaGraphNodeType type{};
  cudaKernelNodeParams params{};
  if (cudaGraphNodeGetType(node, &type) != cudaSuccess || type != cudaGraphNodeTypeKernel ||
      cudaGraphKernelNodeGetParams(node, &params) != cudaSuccess || !params.kernelParams) {
    cudaGetLastError();  // a library's kernel
    return std::nullopt;
  }
  Launch launch;
  launch.node = node;
  launch.is_product = read_product(params, launch.kind, launch.phase.product);
  if (!launch.is_product && !read_attention(params, launch.phase.attention)) return std::nullopt;
  return launch;
}

/// The phases of launches that follow each other, the last of them a product.
std::vector<ProgramPhase> phases_of(const std::vector<Launch>& launches, int blocks) {
  std::vector<ProgramPhase> phases;
  ProgramAttention attention;
  int first_block = 0;
  for (const Launch& launch : launches) {
    if (launch.is_product) {
      phases.push_back({launch.phase.product, attention});
      phases.back().product.first_block = first_block;
      first_block = (first_block + launch.phase.product.jobs.tiles) % blocks;
    }
    attention = launch.is_product ? ProgramAttention{} : launch.phase.attention;
  }
  return phases;
}

/// The attention of a run: one kind, or none.
struct AttentionKind {
  int dim = 0, heads = 0;
  bool operator==(const AttentionKind&) const = default;
};
AttentionKind kind_of(const ProgramAttention& attention) { return {attention.dim, attention.heads}; }

AttentionKind attention_of(const std::vector<ProgramPhase>& phases) {
  for (const ProgramPhase& phase : phases)
    if (phase.attention.dim > 0) return kind_of(phase.attention);
  return {};
}

/// Bytes of shared memory that a phase asks for at most, for x.
int x_bytes_of(const std::vector<ProgramPhase>& phases) {
  int size_bytes = 0;
  for (const ProgramPhase& phase : phases)
    size_bytes = std::max(size_bytes, 2 * phase.product.m * phase.product.x_stride);
  return (size_bytes + 255) / 256 * 256;
}

struct Program {
  const void* kernel = nullptr;  // null: there is no room for its phases together
  int shared_bytes = 0, x_bytes = 0, places = 0, groups = 0;
};

/// Places of the ring that are under way at a time: what the memory's latency takes at its full rate.
constexpr int kRingWindow = 3;

/// With a ring as long as there is room.
template <typename T, bool kNested, int kDim, int kHeads>
Program choose_program(int x_bytes) {
  Program program;
  if constexpr (kDim > 0) {
    constexpr int kGroup = sizeof(DecodeShared<__nv_bfloat16, kDim, kHeads>);
    program.groups = 2;
    x_bytes = std::max(x_bytes, program.groups * kGroup);
  }
  const auto shared_bytes = [&](int places) { return ProgramShared<T, kNested>::size(x_bytes, places); };
  int places = kMostPlaces;
  while (places > 0 && shared_bytes(places) > kSharedLimit) --places;
  if (places < 2) return {};
  program.kernel = reinterpret_cast<const void*>(program_kernel<T, kNested, kDim, kHeads>);
  program.shared_bytes = shared_bytes(places);
  program.x_bytes = x_bytes;
  program.places = places;
  return program;
}

template <typename T, bool kNested>
Program choose_program(AttentionKind attention, int x_bytes) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if (attention == AttentionKind{64, 1}) return choose_program<T, kNested, 64, 1>(x_bytes);
    if (attention == AttentionKind{64, 8}) return choose_program<T, kNested, 64, 8>(x_bytes);
    if (attention == AttentionKind{128, 1}) return choose_program<T, kNested, 128, 1>(x_bytes);
    if (attention == AttentionKind{128, 8}) return choose_program<T, kNested, 128, 8>(x_bytes);
  }
  return attention == AttentionKind{} ? choose_program<T, kNested, 0, 0>(x_bytes) : Program{};
}

Program choose_program(ProductKind kind, AttentionKind attention, int x_bytes) {
  if (kind.compute == DType::bf16)
    return kind.is_nested ? choose_program<__nv_bfloat16, true>(attention, x_bytes)
                          : choose_program<__nv_bfloat16, false>(attention, x_bytes);
  return kind.is_nested ? choose_program<__half, true>(attention, x_bytes)
                        : choose_program<__half, false>(attention, x_bytes);
}

/// Where the launches from `begin` on that one program can do end: after a product. `begin` if there are none.
size_t run_end(const std::vector<std::optional<Launch>>& launches, size_t begin) {
  const Launch *product = nullptr, *attention = nullptr;
  size_t end = begin;
  for (size_t i = begin; i < launches.size() && launches[i]; ++i) {
    const Launch& launch = *launches[i];
    if (launch.is_product) {
      if (!product) product = &launch;
      const auto& book = product->phase.product.book;
      if (launch.kind != product->kind || !std::equal(book, book + 16, launch.phase.product.book)) break;
      end = i + 1;
    } else {
      if (!attention) attention = &launch;
      const bool follows_another = i > begin && !launches[i - 1]->is_product;
      if (follows_another || kind_of(launch.phase.attention) != kind_of(attention->phase.attention)) break;
    }
    if (product && attention && product->kind.compute != DType::bf16) break;
  }
  return end;
}

/// Puts a program in the place of launches that follow each other. Returns its node; null: nothing was changed.
cudaGraphNode_t replace_launches(const Context& context, device::CudaStream& stream, cudaGraph_t graph,
                                 cudaGraphNode_t before, cudaGraphNode_t after, const std::vector<Launch>& launches,
                                 std::vector<std::shared_ptr<void>>& memory) {
  const std::vector<ProgramPhase> phases = phases_of(launches, context.multiprocessors);
  const Program program = choose_program(launches.back().kind, attention_of(phases), x_bytes_of(phases));
  int blocks_each = 0;
  if (!program.kernel ||
      cudaFuncSetAttribute(program.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, program.shared_bytes) !=
          cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, program.kernel, kProgramThreads,
                                                    static_cast<size_t>(program.shared_bytes)) != cudaSuccess ||
      blocks_each < 1) {
    cudaGetLastError();
    return nullptr;
  }
  const auto phase_bytes = static_cast<int64_t>(phases.size() * sizeof(ProgramPhase));
  constexpr int64_t kCounterBytes = 256;
  std::shared_ptr<void> table = stream.allocate(kCounterBytes + phase_bytes);
  auto* counters = static_cast<uint8_t*>(table.get());
  stream.fill_zero(counters, kCounterBytes);
  stream.upload(counters + kCounterBytes, phases.data(), phase_bytes);
  ProgramArgs args{reinterpret_cast<const ProgramPhase*>(counters + kCounterBytes),
                   static_cast<int>(phases.size()),
                   program.x_bytes,
                   program.places,
                   std::min(program.places, kRingWindow),
                   program.groups,
                   {reinterpret_cast<unsigned*>(counters), reinterpret_cast<unsigned*>(counters) + 32}};
  void* parameters[] = {&args};
  cudaKernelNodeParams params{};
  params.func = const_cast<void*>(program.kernel);
  params.gridDim = dim3(static_cast<unsigned>(context.multiprocessors));
  params.blockDim = dim3(kProgramThreads);
  params.sharedMemBytes = static_cast<unsigned>(program.shared_bytes);
  params.kernelParams = parameters;
  cudaGraphNode_t node = nullptr;
  cudaKernelNodeAttrValue is_cooperative{};
  is_cooperative.cooperative = 1;
  if (cudaGraphAddKernelNode(&node, graph, before ? &before : nullptr, before ? 1 : 0, &params) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  bool is_done = cudaGraphKernelNodeSetAttribute(node, cudaLaunchAttributeCooperative, &is_cooperative) == cudaSuccess;
#if CUDART_VERSION >= 13000
  if (after) is_done = is_done && cudaGraphAddDependencies(graph, &node, &after, nullptr, 1) == cudaSuccess;
#else
  if (after) is_done = is_done && cudaGraphAddDependencies(graph, &node, &after, 1) == cudaSuccess;
#endif
  for (const Launch& launch : launches) is_done = is_done && cudaGraphDestroyNode(launch.node) == cudaSuccess;
  if (!is_done)
    throw Error(ErrorCode::device, std::string("joining launches: ") + cudaGetErrorString(cudaGetLastError()));
  memory.push_back(std::move(table));
  return node;
}

}  // namespace

std::shared_ptr<void> fuse_graph(const Context& context, device::CudaStream& stream, void* recorded) {
  if (context.capability != 90) return nullptr;
  auto* graph = static_cast<cudaGraph_t>(recorded);
  std::vector<cudaGraphNode_t> chain = chain_of(graph);
  std::vector<std::optional<Launch>> launches;
  for (cudaGraphNode_t node : chain) launches.push_back(find_launch(node));
  const auto memory = std::make_shared<std::vector<std::shared_ptr<void>>>();
  for (size_t begin = 0, end = 0; begin < chain.size(); begin = std::max(end, begin + 1)) {
    end = run_end(launches, begin);
    if (end < begin + 2) continue;
    std::vector<Launch> run;
    for (size_t i = begin; i < end; ++i) run.push_back(*launches[i]);
    const cudaGraphNode_t node = replace_launches(context, stream, graph, begin > 0 ? chain[begin - 1] : nullptr,
                                                  end < chain.size() ? chain[end] : nullptr, run, *memory);
    if (node) chain[end - 1] = node;
  }
  return memory->empty() ? nullptr : memory;
}

}  // namespace nibble::kernels::cuda
