// What a kernel may use besides its arguments: the pool and memory that is kept between calls.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "thread_pool.h"

namespace tianquan {

// Memory that grows to the largest call and is then reused: a decode step allocates nothing.
class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Return at least `bytes` bytes, aligned to a cache line. What was there before is lost when it grows.
  void* reserve(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Buffers that live at the same time within one call have different numbers.
enum class Shared { kCodes32, kScales32, kSums32, kCodes64, kScales64, kSums64, kLowRank, kHidden, kCount };

class Runtime {
 public:
  explicit Runtime(int num_threads);

  ThreadPool& pool() { return pool_; }
  int num_threads() const { return pool_.num_threads(); }
  void* shared(Shared buffer, size_t bytes) { return shared_[static_cast<int>(buffer)].reserve(bytes); }
  void* scratch(int thread, size_t bytes) { return per_thread_[thread]->reserve(bytes); }

 private:
  ThreadPool pool_;
  Workspace shared_[static_cast<int>(Shared::kCount)];
  std::vector<std::unique_ptr<Workspace>> per_thread_;
};

}  // namespace tianquan
