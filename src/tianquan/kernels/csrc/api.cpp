// The C functions that `kernels/library.py` calls. A handle is one pool, its memory and one instruction set.
//
// A handle may be used from several threads: calls wait for each other. After a fork the child has no worker
// threads, so its first call makes a new pool and leaves the parent's untouched.

#include <unistd.h>

#include <mutex>

#include "kernels.h"

namespace tianquan {
namespace {

struct Session {
  explicit Session(int num_threads) : process(getpid()), runtime(num_threads) {}
  const pid_t process;
  std::mutex mutex;
  Runtime runtime;
};

struct Handle {
  const Kernels* kernels;
  int num_threads;
  Session* session;
};

// The session of this process, locked.
class Locked {
 public:
  explicit Locked(void* handle) : handle_(*static_cast<Handle*>(handle)) {
    if (handle_.session->process != getpid()) handle_.session = new Session(handle_.num_threads);
    lock_ = std::unique_lock<std::mutex>(handle_.session->mutex);
  }
  Runtime& runtime() { return handle_.session->runtime; }
  const Kernels* operator->() const { return handle_.kernels; }

 private:
  Handle& handle_;
  std::unique_lock<std::mutex> lock_;
};

}  // namespace
}  // namespace tianquan

using namespace tianquan;

#define TIANQUAN_EXPORT extern "C" __attribute__((visibility("default")))

TIANQUAN_EXPORT int32_t tq_abi_version() { return 1; }

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

// An instruction set by its name; null when this build or this processor lacks it.
TIANQUAN_EXPORT void* tq_open(const char* isa, int32_t num_threads) {
  const Kernels* kernels = find_kernels(isa);
  if (!kernels) return nullptr;
  return new Handle{kernels, num_threads, new Session(num_threads)};
}

TIANQUAN_EXPORT void tq_close(void* handle) {
  Handle* h = static_cast<Handle*>(handle);
  if (h->session->process == getpid()) delete h->session;
  delete h;
}

TIANQUAN_EXPORT void tq_matmul(void* handle, const Matrix* matrices, const Output* outputs, int64_t count,
                               const float* x, int64_t x_stride, int64_t rows) {
  Locked session(handle);
  session->matmul(session.runtime(), matrices, outputs, count, x, x_stride, rows);
}

TIANQUAN_EXPORT void tq_embedding(void* handle, const Matrix* table, const int64_t* rows, int64_t count,
                                  float* out) {
  Locked session(handle);
  session->embedding(session.runtime(), *table, rows, count, out);
}

TIANQUAN_EXPORT void tq_rms_norm(void* handle, const float* x, int64_t stride, const float* weight, float eps,
                                 float* out, int64_t rows, int64_t channels) {
  Locked session(handle);
  session->rms_norm(session.runtime(), x, stride, weight, eps, out, rows, channels);
}

TIANQUAN_EXPORT void tq_layer_norm(void* handle, const float* x, int64_t stride, const float* weight,
                                   const float* bias, float eps, float* out, int64_t rows, int64_t channels) {
  Locked session(handle);
  session->layer_norm(session.runtime(), x, stride, weight, bias, eps, out, rows, channels);
}

TIANQUAN_EXPORT void tq_rope(void* handle, const float* x, int64_t stride, const int32_t* positions,
                             const float* inverse_frequencies, float* out, int64_t out_stride, int64_t rows,
                             int64_t heads, int64_t head_dim) {
  Locked session(handle);
  session->rope(session.runtime(), x, stride, positions, inverse_frequencies, out, out_stride, rows, heads,
                head_dim);
}

TIANQUAN_EXPORT void tq_swiglu(void* handle, const float* gate, int64_t gate_stride, const float* up,
                               int64_t up_stride, float* out, int64_t rows, int64_t channels) {
  Locked session(handle);
  session->swiglu(session.runtime(), gate, gate_stride, up, up_stride, out, rows, channels);
}

TIANQUAN_EXPORT void tq_attention(void* handle, const AttentionArguments* arguments) {
  Locked session(handle);
  session->attention(session.runtime(), *arguments);
}

TIANQUAN_EXPORT void tq_cached_attention(void* handle, const CachedAttentionArguments* arguments) {
  Locked session(handle);
  session->cached_attention(session.runtime(), *arguments);
}

TIANQUAN_EXPORT void tq_decode(void* handle, const DecoderArguments* arguments) {
  Locked session(handle);
  session->decode(session.runtime(), *arguments);
}

TIANQUAN_EXPORT void tq_quantize(void* handle, const QuantizeArguments* arguments) {
  Locked session(handle);
  session->quantize(session.runtime(), *arguments);
}

TIANQUAN_EXPORT double tq_fma_gflop_s(void* handle) {
  Locked session(handle);
  return session->fma_gflop_s(session.runtime());
}

TIANQUAN_EXPORT double tq_read_gb_s(void* handle, const void* data, uint64_t bytes) {
  Locked session(handle);
  return session->read_gb_s(session.runtime(), data, bytes);
}
