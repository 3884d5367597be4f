// A pool of N - 1 workers and the calling thread, which share chunks of work through one counter.
//
// Workers spin for a short while after a job, because the phases of a decode step follow each other within
// microseconds, and then sleep on a condition variable, so that an idle process uses no processor time.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace tianquan {

class ThreadPool {
 public:
  using Body = void (*)(void* argument, int64_t chunk, int thread);

  explicit ThreadPool(int num_threads);  // throws std::system_error where so many cannot be made
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Run body(argument, chunk, thread) for every chunk in [0, num_chunks) and return when all are done.
  // Called by one thread at a time (the session's mutex sees to it). Throws std::bad_alloc if a body did.
  void run(int64_t num_chunks, Body body, void* argument);

 private:
  void stop();
  void work(int thread);
  bool try_chunk(int thread);

  const int num_threads_;
  std::vector<std::thread> workers_;

  // The current job. These fields are written only while no chunk is claimed or left to claim, and read only
  // after a chunk has been claimed.
  Body body_ = nullptr;
  void* argument_ = nullptr;
  int64_t num_chunks_ = 0;

  // Number of the job in the upper 32 bits, chunks not yet claimed in the lower. A chunk is claimed by
  // exchanging the whole word, so a worker that comes late, or was put aside by the system, cannot claim
  // from a job it knows nothing about; and the caller waits for claimed chunks only, never for such a worker.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> num_done_{0};
  std::atomic<bool> lacks_memory_{false};  // a chunk of the current job
  std::mutex mutex_;
  std::condition_variable wake_;
  int num_sleeping_ = 0;  // guarded by mutex_
  std::atomic<bool> stop_{false};
};

}  // namespace tianquan
