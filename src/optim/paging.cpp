// Cutting jobs into pages, and the traffic of the pages.
#include "optim/paging.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/checked.h"

namespace nibble::optim {
namespace {

using kernels::OptimizerJob32Bit;
using kernels::OptimizerJob8Bit;

/// States of one page, all planes together: long enough to fill the link, short enough that the first page and the last
/// one, which nothing overlaps, cost little of a step's pages.
constexpr int64_t kLeastPageBytes = int64_t{2} << 20, kMostPageBytes = int64_t{16} << 20;
constexpr int64_t kPagesOfStep = 32;
/// No state ends closer to the end of its block, so that states of two blocks never look like neighbours.
constexpr int64_t kTailBytes = 4096;

std::array<float**, 3> planes_of(OptimizerJob32Bit& job) { return {&job.state1, &job.state2, &job.state3}; }
std::array<uint8_t**, 3> planes_of(OptimizerJob8Bit& job) { return {&job.codes1, &job.codes2, &job.codes3}; }

template <typename Job>
constexpr int64_t kElementBytes = std::is_same_v<Job, OptimizerJob8Bit> ? 1 : 4;

void advance_absmax(OptimizerJob32Bit&, int64_t) {}
void advance_absmax(OptimizerJob8Bit& job, int64_t begin) {
  for (float** absmax : {&job.absmax1, &job.absmax2, &job.absmax3})
    if (*absmax) *absmax += begin / kernels::kStateBlock;
}

}  // namespace

/// Part of one job. Its states' places in main memory and in the page.
template <typename Job>
struct Pager::Piece {
  Job job;  // with states in the page
  std::array<std::byte*, 3> home{};
};

template <typename Job>
struct Pager::Page {
  std::vector<Piece<Job>> pieces;
  int64_t elements = 0;
};

Pager::Pager(ops::Backend& backend)
    : backend_(backend),
      in_(device::open_cuda(backend.device().cuda)),
      out_(device::open_cuda(backend.device().cuda)) {}

Pager::~Pager() {
  try {
    in_->synchronize();
    finish();
  } catch (const std::exception&) {  // a failed GPU: what waits for it next reports it
  }
}

std::shared_ptr<void> Pager::allocate(int64_t size_bytes) {
  std::shared_ptr<void> block = backend_.cuda()->allocate_pinned(size_bytes + kTailBytes);
  std::memset(block.get(), 0, static_cast<size_t>(size_bytes));
  return block;
}

void Pager::finish() { out_->synchronize(); }

/// Of a step over so many bytes of states; pages on the GPU grow to it.
int64_t Pager::page_bytes(int64_t state_bytes) {
  const int64_t bytes = std::clamp(state_bytes / kPagesOfStep, kLeastPageBytes, kMostPageBytes);
  if (bytes <= slot_bytes_) return bytes;
  in_->synchronize();
  backend_.cuda()->synchronize();
  finish();
  slots_ = {};
  slot_bytes_ = bytes;
  return bytes;
}

/// Neighbours travel together.
template <typename Job>
void Pager::copy_states(device::CudaStream& stream, const Page<Job>& page, bool is_in) {
  for (size_t k = 0; k < 3; ++k) {
    std::byte *home = nullptr, *there = nullptr;
    int64_t bytes = 0;
    const auto flush = [&] {
      if (bytes > 0) stream.copy(is_in ? there : home, is_in ? home : there, bytes);
    };
    for (const Piece<Job>& piece : page.pieces) {
      if (!piece.home[k]) continue;
      Job job = piece.job;
      auto* at = reinterpret_cast<std::byte*>(*planes_of(job)[k]);
      const int64_t size = job.of.count * kElementBytes<Job>, gap = at - there - bytes;
      if (bytes > 0 && gap >= 0 && gap < kPageAlignment * kElementBytes<Job> && piece.home[k] - home == at - there) {
        bytes += gap + size;
        continue;
      }
      flush();
      home = piece.home[k];
      there = at;
      bytes = size;
    }
    flush();
  }
}

template <typename Job, typename Launch>
void Pager::run(std::span<const Job> jobs, Launch&& launch) {
  Job first = jobs.front();
  const auto all_planes = planes_of(first);
  const auto planes = std::count_if(all_planes.begin(), all_planes.end(), [](auto plane) { return *plane; });
  int64_t elements = 0;
  for (const Job& job : jobs) elements += job.of.count;
  const int64_t limit = page_bytes(elements * planes * kElementBytes<Job>) / (planes * kElementBytes<Job>) /
                        kernels::kOptimizerChunk * kernels::kOptimizerChunk;
  std::vector<Page<Job>> pages(1);
  for (const Job& job : jobs)
    for (int64_t begin = 0; begin < job.of.count;) {
      if (pages.back().elements >= limit) pages.emplace_back();
      Page<Job>& page = pages.back();
      Piece<Job> piece{job, {}};
      kernels::OptimizerParameter& of = piece.job.of;
      of.count = std::min(job.of.count - begin, limit - page.elements);
      of.parameter = static_cast<std::byte*>(of.parameter) + begin * size_of(of.dtype);
      of.gradient = static_cast<const std::byte*>(of.gradient) + begin * size_of(of.gradient_dtype);
      of.chunks_before = page.pieces.empty() ? 0
                                             : page.pieces.back().job.of.chunks_before +
                                                   ceil_div(page.pieces.back().job.of.count, kernels::kOptimizerChunk);
      advance_absmax(piece.job, begin);
      const size_t slot = (pages.size() - 1) % slots_.size();
      if (!slots_[slot].memory) {
        slots_[slot].memory = backend_.cuda()->allocate(slot_bytes_);
        in_->wait_for(*backend_.cuda()->mark());  // the memory may have served work that is still under way
      }
      auto* there = static_cast<std::byte*>(slots_[slot].memory.get()) + page.elements * kElementBytes<Job>;
      for (size_t k = 0; k < 3; ++k) {
        auto** plane = planes_of(piece.job)[k];
        if (!*plane) continue;
        piece.home[k] = reinterpret_cast<std::byte*>(*plane + begin);
        *plane = reinterpret_cast<std::remove_reference_t<decltype(*plane)>>(there + static_cast<int64_t>(k) * limit *
                                                                                         kElementBytes<Job>);
      }
      begin += of.count;
      page.elements += ceil_div(of.count, kPageAlignment) * kPageAlignment;
      page.pieces.push_back(piece);
    }

  in_->wait_for(*out_->mark());  // states that the step before sent home
  const auto fetch = [&](size_t i) {
    if (i >= pages.size()) return;
    Slot& slot = slots_[i % slots_.size()];
    if (slot.written) in_->wait_for(*slot.written);
    copy_states(*in_, pages[i], true);
    slot.loaded = in_->mark();
  };
  fetch(0);
  fetch(1);
  for (size_t i = 0; i < pages.size(); ++i) {
    Slot& slot = slots_[i % slots_.size()];
    backend_.cuda()->wait_for(*slot.loaded);
    std::vector<Job> part;
    for (const Piece<Job>& piece : pages[i].pieces) part.push_back(piece.job);
    launch(part);
    out_->wait_for(*backend_.cuda()->mark());
    copy_states(*out_, pages[i], false);
    slot.written = out_->mark();
    fetch(i + 2);
  }
}

void Pager::step(kernels::OptimizerRule rule, std::span<const OptimizerJob32Bit> jobs) {
  run(jobs, [&](const std::vector<OptimizerJob32Bit>& part) {
    backend_.kernels().optimizer_step_32bit(backend_.context(), {rule, part.data(), static_cast<int64_t>(part.size())});
  });
}

void Pager::step(const kernels::OptimizerStep8BitArgs& args) {
  run(std::span(args.jobs, static_cast<size_t>(args.count)), [&](const std::vector<OptimizerJob8Bit>& part) {
    kernels::OptimizerStep8BitArgs page = args;
    page.jobs = part.data();
    page.count = static_cast<int64_t>(part.size());
    backend_.kernels().optimizer_step_8bit(backend_.context(), page);
  });
}

}  // namespace nibble::optim
