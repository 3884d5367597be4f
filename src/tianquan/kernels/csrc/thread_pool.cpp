#include "thread_pool.h"

#include <chrono>
#include <new>

namespace tianquan {
namespace {

// Longer than the gap between two phases of a decode step, shorter than anybody notices as load.
constexpr auto kSpin = std::chrono::microseconds(200);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

constexpr uint64_t kUnclaimed = 0xFFFFFFFF;  // the lower half of a ticket

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  try {
    for (int thread = 1; thread < num_threads; ++thread) {
      workers_.emplace_back(&ThreadPool::work, this, thread);
    }
  } catch (...) {  // no more threads may be made: those that were must not outlive this
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
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
  num_done_.store(0, std::memory_order_relaxed);
  lacks_memory_.store(false, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(job << 32 | static_cast<uint64_t>(num_chunks), std::memory_order_seq_cst);
  {
    // taken even when nobody sleeps: a worker that is about to sleep must see the new ticket first
    std::lock_guard<std::mutex> lock(mutex_);
    if (num_sleeping_ > 0) wake_.notify_all();
  }
  while (try_chunk(0)) {
  }
  int spins = 0;
  while (num_done_.load(std::memory_order_acquire) != num_chunks) {
    if (++spins < 4096) {
      pause();
    } else {
      std::this_thread::yield();  // more threads than processors: let the worker run
    }
  }
  if (lacks_memory_.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

bool ThreadPool::try_chunk(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if ((ticket & kUnclaimed) == 0) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
  try {
    body_(argument_, num_chunks_ - static_cast<int64_t>(ticket & kUnclaimed), thread);
  } catch (const std::bad_alloc&) {  // run() throws it again, when nobody works on the job any more
    lacks_memory_.store(true, std::memory_order_relaxed);
  }
  num_done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::work(int thread) {
  auto deadline = std::chrono::steady_clock::now() + kSpin;
  for (int spins = 1; !stop_.load(std::memory_order_relaxed); ++spins) {
    if (try_chunk(thread)) {
      while (try_chunk(thread)) {
      }
      deadline = std::chrono::steady_clock::now() + kSpin;
    }
    pause();
    if (spins % 64 != 0 || std::chrono::steady_clock::now() < deadline) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    ++num_sleeping_;
    wake_.wait(lock, [&] { return stop_.load() || (ticket_.load() & kUnclaimed) != 0; });
    --num_sleeping_;
    deadline = std::chrono::steady_clock::now() + kSpin;
  }
}

}  // namespace tianquan
