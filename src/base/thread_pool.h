// A fixed set of threads that run one parallel loop at a time; small enough to start 200 loops a token.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace nibble {

/// Runs loops over [0, count). Which thread runs which index never changes a result: work items are independent.
/// One loop at a time: calls from several threads are serialized. A loop inside a loop runs on the calling thread.
class ThreadPool {
 public:
  /// `threads` includes the calling thread; 0 means one per CPU this process may use. Error{out_of_memory} where the
  /// system refuses one of them.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  using Task = void (*)(void* context, int64_t index, int thread);
  /// Calls task(context, i, thread) once for each i in [0, count); returns when all are done. An exception from a
  /// task is rethrown here after the others have finished (the first to be caught, where several throw). `thread` is
  /// below threads(); no two calls with the same one run at a time. Inside a loop it is the outer loop's.
  void run(int64_t count, Task task, void* context);

  /// The same for a callable `body(int64_t index, int thread)`.
  template <typename Body>
  void parallel_for(int64_t count, Body&& body) {
    run(
        count,
        [](void* context, int64_t index, int thread) {
          (*static_cast<std::remove_reference_t<Body>*>(context))(index, thread);
        },
        &body);
  }

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// CPUs that this process may run on (affinity mask), at least 1.
int available_cpus();

}  // namespace nibble
