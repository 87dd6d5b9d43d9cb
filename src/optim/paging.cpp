// Cutting jobs into pages, and the traffic of the pages.
#include "optim/paging.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/checked.h"

namespace nibble::optim {
namespace {

using kernels::OptimizerJob32Bit;
using kernels::OptimizerJob8Bit;

/// States of one page, all planes together: long enough to fill the link, short enough that the first page, which the
/// first of several steps waits for, costs little of a step.
constexpr int64_t kLeastPageBytes = int64_t{2} << 20, kMostPageBytes = int64_t{16} << 20;
constexpr int64_t kPagesOfStep = 16;
/// No state ends closer to the end of its block, so that states of two blocks never look like neighbours.
constexpr int64_t kTailBytes = 4096;
/// What copies of rows take.
constexpr int64_t kMostStride = (int64_t{1} << 31) - 1;

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
  Slot* slot = nullptr;
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

/// Neighbours travel together, and the planes with them where they lie alike.
template <typename Job>
void Pager::copy_states(device::CudaStream& stream, const Page<Job>& page, bool is_in) {
  struct Stretch {
    std::byte *home, *there;
    int64_t bytes;
  };
  std::array<std::vector<Stretch>, 3> planes;
  for (size_t k = 0; k < 3; ++k)
    for (const Piece<Job>& piece : page.pieces) {
      if (!piece.home[k]) continue;
      Job job = piece.job;
      auto* at = reinterpret_cast<std::byte*>(*planes_of(job)[k]);
      const int64_t size = job.of.count * kElementBytes<Job>;
      if (!planes[k].empty()) {
        Stretch& last = planes[k].back();
        const int64_t gap = at - last.there - last.bytes;
        if (gap >= 0 && gap < kPageAlignment * kElementBytes<Job> && piece.home[k] - last.home == at - last.there) {
          last.bytes += gap + size;
          continue;
        }
      }
      planes[k].push_back({piece.home[k], at, size});
    }
  const auto& [first, second, third] = planes;
  if (first.size() == 1 && second.size() == 1 && third.empty() && first[0].bytes == second[0].bytes &&
      second[0].home - first[0].home >= first[0].bytes && second[0].home - first[0].home < kMostStride) {
    const int64_t home = second[0].home - first[0].home, there = second[0].there - first[0].there;
    if (is_in)
      stream.copy_rows(first[0].there, there, first[0].home, home, first[0].bytes, 2);
    else
      stream.copy_rows(first[0].home, home, first[0].there, there, first[0].bytes, 2);
    return;
  }
  for (const auto& plane : planes)
    for (const Stretch& s : plane) stream.copy(is_in ? s.there : s.home, is_in ? s.home : s.there, s.bytes);
}

/// Pages of at most `limit` elements, each in the slot after that of the one before.
template <typename Job>
std::vector<Pager::Page<Job>> Pager::cut(std::span<const Job> jobs, int64_t limit) {
  std::vector<Page<Job>> pages;
  const auto begin_page = [&] {
    Slot& slot = slots_[next_slot_];
    next_slot_ = (next_slot_ + 1) % slots_.size();
    if (!slot.memory) {
      slot.memory = backend_.cuda()->allocate(slot_bytes_);
      in_->wait_for(*backend_.cuda()->mark());  // the memory may have served work that is still under way
    }
    pages.push_back({{}, 0, &slot});
  };
  for (const Job& job : jobs)
    for (int64_t begin = 0; begin < job.of.count;) {
      if (pages.empty() || pages.back().elements >= limit) begin_page();
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
      auto* there = static_cast<std::byte*>(page.slot->memory.get()) + page.elements * kElementBytes<Job>;
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
  return pages;
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
  std::vector<Page<Job>> pages = cut(jobs, limit);
  Sent& sent = sent_[std::is_same_v<Job, OptimizerJob8Bit>];
  const Sent before = std::exchange(sent, {limit, {}, {}});
  for (Job job : jobs) sent.states.emplace_back(*planes_of(job)[0], job.of.count);
  const bool is_same = sent.states == before.states && limit == before.limit && before.written.size() == pages.size();
  if (!is_same) in_->wait_for(*out_->mark());  // any of the states may be on their way home
  const auto fetch = [&](size_t i) {
    if (i >= pages.size()) return;
    if (is_same) in_->wait_for(*before.written[i]);
    if (pages[i].slot->written) in_->wait_for(*pages[i].slot->written);
    copy_states(*in_, pages[i], true);
    pages[i].slot->loaded = in_->mark();
  };
  const size_t ahead = slots_.size() - 1;
  for (size_t i = 0; i < ahead; ++i) fetch(i);
  for (size_t i = 0; i < pages.size(); ++i) {
    Slot& slot = *pages[i].slot;
    backend_.cuda()->wait_for(*slot.loaded);
    std::vector<Job> part;
    for (const Piece<Job>& piece : pages[i].pieces) part.push_back(piece.job);
    launch(part);
    out_->wait_for(*backend_.cuda()->mark());
    copy_states(*out_, pages[i], false);
    slot.written = out_->mark();
    sent.written.push_back(slot.written);
    fetch(i + ahead);
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
