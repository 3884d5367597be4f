#include "runtime.h"

#include <new>

namespace tianquan {

Workspace::~Workspace() { ::operator delete(data_, std::align_val_t(64)); }

void* Workspace::reserve(size_t bytes) {
  if (bytes > size_) {
    ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    size_ = 0;
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    data_ = ::operator new(rounded, std::align_val_t(64));
    size_ = rounded;
  }
  return data_;
}

Runtime::Runtime(int num_threads) : pool_(num_threads) {
  for (int thread = 0; thread < num_threads; ++thread) per_thread_.push_back(std::make_unique<Workspace>());
}

}  // namespace tianquan
