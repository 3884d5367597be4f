// The C functions that `kernels/library.py` calls. A handle is one pool, its memory and one instruction set.
//
// A handle may be used from several threads: calls wait for each other. After a fork the child has no worker
// threads, so its first call makes a new pool and leaves the parent's untouched.
//
// No exception leaves this file, since what calls it is not C++: each function returns a status.

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>

#include "kernels.h"

namespace tianquan {
namespace {

// Which process this is. Its number alone may come again, as that of a child in a namespace of its own.
std::atomic<int64_t> num_forks{0};
const int forks_are_counted = pthread_atfork(nullptr, nullptr, [] { ++num_forks; });

struct Process {
  pid_t id = getpid();
  int64_t forks = num_forks;
  bool is_this() const { return id == getpid() && forks == num_forks; }
};

struct Session {
  explicit Session(int num_threads) : runtime(num_threads) {}
  const Process process;
  std::mutex mutex;
  Runtime runtime;
};

struct Handle {
  const Kernels* kernels;
  int num_threads;
  std::atomic<Session*> session;
};

// The session of this process. Two threads of a forked child may come first: one's session is kept.
Session& session_of(Handle& handle) {
  Session* session = handle.session;
  if (session->process.is_this()) return *session;
  auto made = std::make_unique<Session>(handle.num_threads);
  if (handle.session.compare_exchange_strong(session, made.get())) return *made.release();
  return *session;
}

// The session of this process, locked.
class Locked {
 public:
  explicit Locked(Handle& handle)
      : kernels_(handle.kernels), session_(session_of(handle)), lock_(session_.mutex) {}
  Runtime& runtime() { return session_.runtime; }
  const Kernels* operator->() const { return kernels_; }

 private:
  const Kernels* kernels_;
  Session& session_;
  std::unique_lock<std::mutex> lock_;
};

// What a call ended with; `kernels/library.py` has the same numbers.
enum Status : int32_t { kOk = 0, kNoMemory = 1, kNoThreads = 2 };

template <typename Work>
int32_t guarded(const Work& work) {
  try {
    work();
    return kOk;
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  } catch (const std::system_error&) {  // of std::thread, and nothing else here
    return kNoThreads;
  }
}

template <typename Work>
int32_t with_session(void* handle, const Work& work) {
  return guarded([&] {
    Locked session(*static_cast<Handle*>(handle));
    work(session);
  });
}

}  // namespace
}  // namespace tianquan

using namespace tianquan;

#define TIANQUAN_EXPORT extern "C" __attribute__((visibility("default")))

TIANQUAN_EXPORT int32_t tq_abi_version() { return 3; }

// The sizes Python compares with its own structs before it passes any.
TIANQUAN_EXPORT void tq_struct_sizes(int64_t* sizes) {
  const size_t all[] = {sizeof(Matrix),
                        sizeof(Output),
                        sizeof(KeyValueStore),
                        sizeof(Batch),
                        sizeof(AttentionArguments),
                        sizeof(CachedAttentionArguments),
                        sizeof(LayerWeights),
                        sizeof(DecoderArguments),
                        sizeof(QuantizeArguments)};
  for (size_t size : all) *sizes++ = static_cast<int64_t>(size);
}

// An instruction set by its name; *handle is null when this build or this processor lacks it.
TIANQUAN_EXPORT int32_t tq_open(const char* isa, int32_t num_threads, void** handle) {
  *handle = nullptr;
  return guarded([&] {
    const Kernels* kernels = find_kernels(isa);
    if (!kernels) return;
    auto session = std::make_unique<Session>(num_threads);
    *handle = new Handle{kernels, num_threads, session.get()};
    session.release();
  });
}

TIANQUAN_EXPORT void tq_close(void* handle) {
  Handle* h = static_cast<Handle*>(handle);
  Session* session = h->session;
  if (session->process.is_this()) delete session;
  delete h;
}

TIANQUAN_EXPORT int32_t tq_matmul(void* handle, const Matrix* matrices, const Output* outputs, int64_t count,
                                  const float* x, int64_t x_stride, int64_t rows) {
  return with_session(handle, [&](Locked& session) {
    session->matmul(session.runtime(), matrices, outputs, count, x, x_stride, rows);
  });
}

TIANQUAN_EXPORT int32_t tq_embedding(void* handle, const Matrix* table, const int64_t* rows, int64_t count,
                                     float* out) {
  return with_session(
      handle, [&](Locked& session) { session->embedding(session.runtime(), *table, rows, count, out); });
}

TIANQUAN_EXPORT int32_t tq_rms_norm(void* handle, const float* x, int64_t stride, const float* weight,
                                    float eps, float* out, int64_t rows, int64_t channels) {
  return with_session(handle, [&](Locked& session) {
    session->rms_norm(session.runtime(), x, stride, weight, eps, out, rows, channels);
  });
}

TIANQUAN_EXPORT int32_t tq_layer_norm(void* handle, const float* x, int64_t stride, const float* weight,
                                      const float* bias, float eps, float* out, int64_t rows,
                                      int64_t channels) {
  return with_session(handle, [&](Locked& session) {
    session->layer_norm(session.runtime(), x, stride, weight, bias, eps, out, rows, channels);
  });
}

TIANQUAN_EXPORT int32_t tq_rope(void* handle, const float* x, int64_t stride, const int32_t* positions,
                                const float* inverse_frequencies, float* out, int64_t out_stride,
                                int64_t rows, int64_t heads, int64_t head_dim) {
  return with_session(handle, [&](Locked& session) {
    session->rope(session.runtime(), x, stride, positions, inverse_frequencies, out, out_stride, rows, heads,
                  head_dim);
  });
}

TIANQUAN_EXPORT int32_t tq_swiglu(void* handle, const float* gate, int64_t gate_stride, const float* up,
                                  int64_t up_stride, float* out, int64_t rows, int64_t channels) {
  return with_session(handle, [&](Locked& session) {
    session->swiglu(session.runtime(), gate, gate_stride, up, up_stride, out, rows, channels);
  });
}

TIANQUAN_EXPORT int32_t tq_attention(void* handle, const AttentionArguments* arguments) {
  return with_session(handle, [&](Locked& session) { session->attention(session.runtime(), *arguments); });
}

TIANQUAN_EXPORT int32_t tq_cached_attention(void* handle, const CachedAttentionArguments* arguments) {
  return with_session(handle,
                      [&](Locked& session) { session->cached_attention(session.runtime(), *arguments); });
}

TIANQUAN_EXPORT int32_t tq_decode(void* handle, const DecoderArguments* arguments) {
  return with_session(handle, [&](Locked& session) { session->decode(session.runtime(), *arguments); });
}

TIANQUAN_EXPORT int32_t tq_quantize(void* handle, const QuantizeArguments* arguments) {
  return with_session(handle, [&](Locked& session) { session->quantize(session.runtime(), *arguments); });
}

TIANQUAN_EXPORT int32_t tq_fma_gflop_s(void* handle, double* result) {
  return with_session(handle, [&](Locked& session) { *result = session->fma_gflop_s(session.runtime()); });
}

TIANQUAN_EXPORT int32_t tq_read_gb_s(void* handle, const void* data, uint64_t bytes, double* result) {
  return with_session(handle,
                      [&](Locked& session) { *result = session->read_gb_s(session.runtime(), data, bytes); });
}
