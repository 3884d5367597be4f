// What this machine can do at best with the same threads, in registers of 256 bits: the denominators of every
// share that is reported.

#include <time.h>

#include "operations.h"
#include "parallel.h"

namespace tianquan::TIANQUAN_ISA {
namespace {

double seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

constexpr int kFmaRepeats = 7;
constexpr int kReadRepeats = 3;
constexpr int kMaxThreads = 1024;

}  // namespace

double fma_gflop_s(Runtime& runtime) {
  constexpr int64_t kIterations = 500000;
  constexpr int kChains = 12;  // enough to hide the latency of two units
  float sink[kMaxThreads] = {};
  auto body = [&](int64_t chunk, int) {
    F8 sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = splat(static_cast<float>(i));
    F8 factor = splat(0.999f);
    for (int64_t n = 0; n < kIterations; ++n) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) sums[i] = fma(sums[i], factor, factor);
    }
    for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
    sink[chunk] = horizontal_sum(sums[0]);
  };
  double best = 0;
  for (int repeat = 0; repeat < kFmaRepeats; ++repeat) {
    const double start = seconds();
    parallel_for(runtime, runtime.num_threads(), body);
    const double operations = 2.0 * 8 * kChains * static_cast<double>(kIterations) * runtime.num_threads();
    const double rate = operations / (seconds() - start) * 1e-9;
    best = rate > best ? rate : best;
  }
  volatile float keep = sink[0];
  (void)keep;
  return best;
}

double read_gb_s(Runtime& runtime, const void* data, size_t bytes) {
  constexpr int64_t kChunkBytes = 256 * 1024;
  const int64_t chunks = static_cast<int64_t>(bytes) / kChunkBytes;
  int32_t sink[kMaxThreads] = {};
  auto body = [&](int64_t chunk, int thread) {
    const char* p = static_cast<const char*>(data) + chunk * kChunkBytes;
    I8 sums[4] = {};
    for (int64_t at = 0; at < kChunkBytes; at += 128) {
      prefetch(p + at + 2048);
      prefetch(p + at + 2112);
      for (int i = 0; i < 4; ++i) sums[i] ^= load_int(reinterpret_cast<const int32_t*>(p + at + 32 * i));
    }
    const I8 total = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    sink[thread] ^= total[0];
  };
  double best = 0;
  for (int repeat = 0; repeat < kReadRepeats; ++repeat) {
    const double start = seconds();
    parallel_for(runtime, chunks, body);
    const double rate = static_cast<double>(chunks * kChunkBytes) / (seconds() - start) * 1e-9;
    best = rate > best ? rate : best;
  }
  volatile int32_t keep = sink[0];
  (void)keep;
  return best;
}

}  // namespace tianquan::TIANQUAN_ISA
