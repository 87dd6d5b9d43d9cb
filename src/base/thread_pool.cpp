// Workers spin briefly for the next loop (decode starts one every few microseconds), then sleep.
#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble {
namespace {

thread_local bool inside_loop = false;
thread_local int current_thread = 0;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

/// While it lives, this thread is number `thread` of a loop.
struct Inside {
  explicit Inside(int thread) {
    inside_loop = true;
    current_thread = thread;
  }
  ~Inside() {
    inside_loop = false;
    current_thread = 0;
  }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

/// The whole loop on this thread, as the contract of run() has it: an exception waits for the indices after it.
void run_here(int64_t count, ThreadPool::Task task, void* context, int thread) {
  std::exception_ptr error;
  for (int64_t i = 0; i < count; ++i) {
    try {
      task(context, i, thread);
    } catch (...) {
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// About 100 us: longer than the gap between two loops of a decode step, far shorter than a user's pause.
constexpr int kSpins = 4000;

}  // namespace

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

struct ThreadPool::State {
  std::vector<std::thread> workers;
  std::mutex one_loop;  // serializes run()
  std::mutex sleep;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<int> sleeping{0};
  std::atomic<int> busy{0};
  std::atomic<bool> stop{false};
  std::atomic<int64_t> next{0};
  int64_t count = 0;
  Task task = nullptr;
  void* context = nullptr;
  std::mutex error_mutex;
  std::exception_ptr error;

  void work(int thread) {
    const Inside inside(thread);
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      try {
        task(context, i, thread);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
      }
    }
  }

  void worker(int thread) {
    uint64_t seen = 0;
    while (true) {
      for (int spin = 0; generation.load(std::memory_order_acquire) == seen && spin < kSpins; ++spin) relax();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(sleep);
        sleeping.fetch_add(1);
        // Ordered after the line above, as announce() orders its two: one of both sees the other's, so none sleeps on.
        wake.wait(lock, [&] { return generation.load(std::memory_order_seq_cst) != seen; });
        sleeping.fetch_sub(1);
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      work(thread);
      busy.fetch_sub(1, std::memory_order_release);
    }
  }

  void finish() {
    stop.store(true, std::memory_order_release);
    {
      const std::lock_guard lock(sleep);
      generation.fetch_add(1);
    }
    wake.notify_all();
    for (auto& worker : workers) worker.join();
  }

  void announce() {
    generation.fetch_add(1, std::memory_order_seq_cst);
    if (sleeping.load(std::memory_order_seq_cst) > 0) {
      const std::lock_guard lock(sleep);
      wake.notify_all();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  require(threads >= 0 && threads <= 4096, "threads: found {}, expected 0 (all) to 4096", threads);
  const int total = threads == 0 ? available_cpus() : threads;
  try {
    state_->workers.reserve(static_cast<size_t>(total) - 1);
    for (int i = 1; i < total; ++i) state_->workers.emplace_back([state = state_.get(), i] { state->worker(i); });
  } catch (const std::system_error& error) {
    const size_t started = state_->workers.size();
    state_->finish();
    fail(ErrorCode::out_of_memory, "threads: started {} of {}, the next failed: {}", started + 1, total, error.what());
  }
}

ThreadPool::~ThreadPool() { state_->finish(); }

int ThreadPool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run(int64_t count, Task task, void* context) {
  if (count <= 0) return;
  if (inside_loop) return run_here(count, task, context, current_thread);
  const std::lock_guard loop(state_->one_loop);
  if (state_->workers.empty() || count == 1) {
    const Inside inside(0);
    return run_here(count, task, context, 0);
  }
  state_->count = count;
  state_->task = task;
  state_->context = context;
  state_->error = nullptr;
  state_->next.store(0, std::memory_order_relaxed);
  state_->busy.store(static_cast<int>(state_->workers.size()), std::memory_order_relaxed);
  state_->announce();
  state_->work(0);
  for (int spin = 0; state_->busy.load(std::memory_order_acquire) > 0; ++spin) {
    relax();
    if (spin > kSpins) std::this_thread::yield();  // a worker lost its core: let it have this one
  }
  if (state_->error) std::rethrow_exception(state_->error);
}

}  // namespace nibble
