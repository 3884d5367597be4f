// Run a lambda on the pool. In the namespace of the instruction set, so that no build's code leaks into
// another.

#pragma once

#include "runtime.h"
#include "simd.h"

namespace tianquan::TIANQUAN_ISA {

template <typename Body>
TIANQUAN_INLINE void parallel_for(Runtime& runtime, int64_t num_chunks, Body& body) {
  runtime.pool().run(
      num_chunks,
      [](void* argument, int64_t chunk, int thread) { (*static_cast<Body*>(argument))(chunk, thread); },
      &body);
}

// Like parallel_for, but each thread walks its own contiguous part of the chunks and only then helps the
// others. A weight that streams from memory is prefetched across the border of a chunk: with chunks dealt out
// in turn that reaches into another thread's chunk and misses the own next one (76 % of the read bandwidth).
template <typename Body>
TIANQUAN_INLINE void parallel_stream(Runtime& runtime, int64_t num_chunks, Body& body) {
  constexpr int64_t kMaxParts = 64;
  struct alignas(64) Part {
    int64_t next, end;
  } parts[kMaxParts];
  const int64_t num_parts = min_of(min_of(runtime.num_threads(), kMaxParts), max_of(num_chunks, 1));
  for (int64_t i = 0; i < num_parts; ++i) {
    parts[i].next = num_chunks * i / num_parts;
    parts[i].end = num_chunks * (i + 1) / num_parts;
  }
  auto walk = [&](int64_t home, int thread) {
    for (int64_t i = 0; i < num_parts; ++i) {
      Part& part = parts[(home + i) % num_parts];
      for (;;) {
        const int64_t chunk = __atomic_fetch_add(&part.next, 1, __ATOMIC_RELAXED);
        if (chunk >= part.end) break;
        body(chunk, thread);
      }
    }
  };
  parallel_for(runtime, num_parts, walk);
}

}  // namespace tianquan::TIANQUAN_ISA
