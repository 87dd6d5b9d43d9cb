// Each index once, loops one after another, exceptions after the last index, and threads that can't be started.
#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "nibble/types.h"

namespace nibble {
namespace {

TEST(ThreadPool, RunsEachIndexOnceAndRethrows) {
  ThreadPool pool(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::atomic<int>> hits(97);
    pool.parallel_for(97, [&](int64_t i, int) { hits[static_cast<size_t>(i)]++; });
    for (auto& hit : hits) EXPECT_EQ(hit.load(), 1);
  }
  EXPECT_THROW(pool.parallel_for(10,
                                 [](int64_t i, int) {
                                   if (i == 7) throw Error(ErrorCode::io, "seven");
                                 }),
               Error);
}

// Plain memory written by one loop and read by the next, with pauses long enough for the workers to fall asleep and
// with loops from two threads: what the pool must order, and what the thread sanitizer watches.
TEST(ThreadPool, LoopsSeeWhatTheLoopBeforeWrote) {
  ThreadPool pool(4);
  const auto drive = [&pool] {
    std::vector<int> values(64, 0);
    for (int round = 1; round <= 300; ++round) {
      if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      pool.parallel_for(64, [&](int64_t i, int) {
        const auto at = static_cast<size_t>(i);
        if (values[at] == round - 1) values[at] = round;
      });
      std::reverse(values.begin(), values.end());
    }
    EXPECT_EQ(std::count(values.begin(), values.end(), 300), 64);
  };
  std::thread other(drive);
  drive();
  other.join();
  EXPECT_THROW(pool.parallel_for(64, [](int64_t, int) { throw Error(ErrorCode::io, "all"); }), Error);
  drive();
}

// A loop of one index and a pool of one thread take turns like any other: `thread` may index scratch memory.
TEST(ThreadPool, ShortLoopsAreSerializedToo) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    int64_t scratch = 0;
    const auto drive = [&] {
      for (int round = 0; round < 2000; ++round) pool.parallel_for(1, [&](int64_t, int) { scratch += 1; });
    };
    std::thread other(drive);
    drive();
    other.join();
    EXPECT_EQ(scratch, 4000);
  }
}

TEST(ThreadPool, ExceptionsWaitForTheOtherIndices) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    std::atomic<int> calls{0};
    auto body = [&](int64_t i, int) {
      ++calls;
      if (i == 2) throw Error(ErrorCode::io, "two");
    };
    EXPECT_THROW(pool.parallel_for(10, body), Error);
    EXPECT_EQ(calls, 10);
    calls = 0;
    EXPECT_THROW(pool.parallel_for(1, [&](int64_t, int) { pool.parallel_for(10, body); }), Error);
    EXPECT_EQ(calls, 10);
    EXPECT_NO_THROW(pool.parallel_for(2, body));
  }
}

TEST(ThreadPool, LoopsInsideLoopsStayOnTheirThread) {
  ThreadPool pool(3);
  for (const int64_t outer : {1, 5}) {
    std::atomic<int> wrong{0}, calls{0};
    pool.parallel_for(outer, [&](int64_t, int thread) {
      const auto id = std::this_thread::get_id();
      pool.parallel_for(4, [&](int64_t, int inner) {
        ++calls;
        if (inner != thread || std::this_thread::get_id() != id) ++wrong;
      });
    });
    EXPECT_EQ(calls, 4 * outer);
    EXPECT_EQ(wrong, 0);
  }
}

/// Lets this process start about two more threads: stacks of 1 GiB in an address space with 2.5 GiB left.
struct FewThreads {
  FewThreads() {
    pthread_getattr_default_np(&usual_stack);
    pthread_attr_t large = usual_stack;
    pthread_attr_setstacksize(&large, size_t{1} << 30);
    pthread_setattr_default_np(&large);
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    getrlimit(RLIMIT_AS, &usual_limit);
    rlimit limit = usual_limit;
    limit.rlim_cur = pages * uint64_t(sysconf(_SC_PAGESIZE)) + (uint64_t{5} << 29);
    setrlimit(RLIMIT_AS, &limit);
  }
  ~FewThreads() {
    setrlimit(RLIMIT_AS, &usual_limit);
    pthread_setattr_default_np(&usual_stack);
  }
  FewThreads(const FewThreads&) = delete;
  FewThreads& operator=(const FewThreads&) = delete;
  pthread_attr_t usual_stack;
  rlimit usual_limit;
};

TEST(ThreadPool, ThreadsThatCannotStartAreAnError) {
  const FewThreads limits;
  try {
    const ThreadPool pool(6);
    ADD_FAILURE() << "started all";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::out_of_memory);
    EXPECT_EQ(std::string(error.what()).rfind("threads: started ", 0), 0u) << error.what();
  }
}

}  // namespace
}  // namespace nibble
