// Dot products of the low-bit kernels with AVX-512 VNNI. Included by lowbit_x86.h.
//
// Ceiling: vpdpbusd adds 4 products a lane in one instruction and saturates nowhere. Zen 4 starts one of 512
// bits a cycle: 128 operations, where the float32 peak is 32. A tile of 4 rows x 6 panels keeps 12 sums, 12
// results and 3 weights in 27 of 32 registers. Whole products measured 350 GOP/s (int8) and 325 (int4) on a
// core with a float32 peak of 118 GFLOP/s; a fifth of the rest goes into scaling the sums of each group.
//
// Legend: R rows, V registers of out channels.

#pragma once

#include "lanes.h"

namespace tianquan::TIANQUAN_ISA {

constexpr int64_t kFewRows = 40;  // measured: with more rows unpacking first is faster
constexpr int kTileRows = 4;
constexpr int kTilePanels = 6;
constexpr int kStreamRows = 8;           // rows of a pass over packed codes: their sums stay in registers
constexpr bool kHasPackedGroup = false;  // what GCC makes of the general loop is as fast

// Panels side by side in a pass of R rows: two fill a register.
template <Format F, int R>
constexpr int kStreamPanels = R > 3 ? 2 : 1;

// Two panels a register where their number is even.
template <int P>
struct LanesOf {
  using Type = PanelLanes;
};
template <>
struct LanesOf<2> {
  using Type = PairLanes;
};
template <>
struct LanesOf<4> {
  using Type = PairLanes;
};
template <>
struct LanesOf<6> {
  using Type = PairLanes;
};

TIANQUAN_INLINE void add_quad(__m256i& sum, __m256i u, __m256i s) { sum = _mm256_dpbusd_epi32(sum, u, s); }
TIANQUAN_INLINE void add_quad(__m512i& sum, __m512i u, __m512i s) { sum = _mm512_dpbusd_epi32(sum, u, s); }

// sum += u0 s0 + u1 s1, unsigned times signed bytes, 4 products of each a lane.
template <Format F, typename Int>
TIANQUAN_INLINE void add_products(Int& sum, Int u0, Int s0, Int u1, Int s1) {
  add_quad(sum, u0, s0);
  add_quad(sum, u1, s1);
}

// The sum of a group in 32 bits.
template <Format F, typename Int>
TIANQUAN_INLINE Int whole_sum(Int sum) {
  return sum;
}

// dot[r][v] += one group of R rows, `stride` bytes apart, with unpacked weights [quad][P][8 out][4 in].
template <Format F, int R, int P, typename Int, int V>
TIANQUAN_INLINE void multiply_group(const uint8_t* a, int64_t stride, const int8_t* codes, Int (&dot)[R][V]) {
  using Lanes = typename LanesOf<P>::Type;
  constexpr int kQuads = (F == Format::kInt4 ? kInt4Activations : kInt8Activations) / 4;
#pragma GCC unroll 4
  for (int quad = 0; quad < kQuads; ++quad) {
    Int weights[V];
#pragma GCC unroll 6
    for (int v = 0; v < V; ++v) weights[v] = Lanes::load(codes + quad * P * kUnitBytes + v * sizeof(Int));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t bytes;
      std::memcpy(&bytes, a + r * stride + quad * 4, sizeof bytes);
      const Int values = Lanes::broadcast(bytes);
#pragma GCC unroll 6
      for (int v = 0; v < V; ++v) add_quad(dot[r][v], values, weights[v]);
    }
  }
}

}  // namespace tianquan::TIANQUAN_ISA
