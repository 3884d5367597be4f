#include "thread_pool.h"

#include <chrono>

namespace tianquan {
namespace {

// Longer than the gap between two phases of a decode step, shorter than anybody notices as load.
constexpr auto kSpin = std::chrono::microseconds(200);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back(&ThreadPool::work, this, thread);
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t num_chunks, Body body, void* argument) {
  if (num_threads_ == 1 || num_chunks <= 1) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) body(argument, chunk, 0);
    return;
  }
  body_ = body;
  argument_ = argument;
  num_chunks_ = num_chunks;
  next_chunk_.store(0, std::memory_order_relaxed);
  active_.store(num_threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_seq_cst);
  {
    // taken even when nobody sleeps: a worker that is about to sleep must see the new generation first
    std::lock_guard<std::mutex> lock(mutex_);
    if (num_sleeping_ > 0) wake_.notify_all();
  }
  drain(0);
  // Every worker must have left the job before its fields may change, even one that found no chunk.
  int spins = 0;
  while (active_.load(std::memory_order_acquire) != 0) {
    if (++spins < 4096) {
      pause();
    } else {
      std::this_thread::yield();  // more threads than processors: let the worker run
    }
  }
}

void ThreadPool::drain(int thread) {
  for (;;) {
    const int64_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= num_chunks_) return;
    body_(argument_, chunk, thread);
  }
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  for (;;) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (++spins % 64 != 0) {
        pause();
        continue;
      }
      if (std::chrono::steady_clock::now() < deadline) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      ++num_sleeping_;
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      --num_sleeping_;
    }
    ++seen;  // the caller waits for every worker, so no generation is ever skipped
    if (stop_.load(std::memory_order_relaxed)) return;  // ordered by generation_
    drain(thread);
    active_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace tianquan
