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

// A run of chunks that one thread walks and others may split: next in the upper half, end in the lower. The
// word is the whole state, so that a comparison of its value decides every race.
struct alignas(64) ChunkRange {
  uint64_t word;

  static uint64_t pack(int64_t next, int64_t end) {
    return static_cast<uint64_t>(next) << 32 | static_cast<uint64_t>(end);
  }
  // Return the first chunk and take it away; -1 when there is none.
  int64_t take_first() {
    return take([](int64_t next, int64_t end) { return pack(next + 1, end); });
  }
  // Move the upper half of what is left to `to`, without its first chunk, which is returned; -1 when empty.
  int64_t split(ChunkRange& to) {
    int64_t end = 0, middle = 0;
    const int64_t next = take([&](int64_t first, int64_t last) {
      end = last;
      middle = first + (last - first) / 2;
      return pack(first, middle);
    });
    if (next < 0) return -1;
    __atomic_store_n(&to.word, pack(middle + 1, end), __ATOMIC_RELEASE);
    return middle;
  }

 private:
  template <typename Rest>
  int64_t take(Rest rest) {
    uint64_t now = __atomic_load_n(&word, __ATOMIC_ACQUIRE);
    for (;;) {
      const int64_t next = static_cast<int64_t>(now >> 32), end = static_cast<int64_t>(now & 0xFFFFFFFF);
      if (next >= end) return -1;
      if (__atomic_compare_exchange_n(&word, &now, rest(next, end), true, __ATOMIC_ACQ_REL,
                                      __ATOMIC_ACQUIRE)) {
        return next;
      }
    }
  }
};

// Like parallel_for, but each thread walks its own contiguous part of the chunks and then halves what is left
// of another's. A weight that streams from memory is prefetched across the border of a chunk: with chunks
// dealt out in turn that reaches into another thread's chunk and misses the own next one (76 % of the read
// bandwidth).
template <typename Body>
TIANQUAN_INLINE void parallel_stream(Runtime& runtime, int64_t num_chunks, Body& body) {
  constexpr int64_t kMaxParts = 1024;  // as many as a pool may have threads
  ChunkRange parts[kMaxParts];
  const int64_t num_parts = min_of(min_of(runtime.num_threads(), kMaxParts), max_of(num_chunks, 1));
  for (int64_t i = 0; i < num_parts; ++i) {
    parts[i].word = ChunkRange::pack(num_chunks * i / num_parts, num_chunks * (i + 1) / num_parts);
  }
  auto walk = [&](int64_t home, int thread) {
    ChunkRange& own = parts[home];
    for (int64_t i = 0; i < num_parts; ++i) {
      int64_t chunk = i == 0 ? own.take_first() : parts[(home + i) % num_parts].split(own);
      if (chunk >= 0) i = 0;  // what was split off lies in `own` now
      for (; chunk >= 0; chunk = own.take_first()) body(chunk, thread);
    }
  };
  parallel_for(runtime, num_parts, walk);
}

}  // namespace tianquan::TIANQUAN_ISA
