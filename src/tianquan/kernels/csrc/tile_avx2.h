// The inner loop of a 2 x 3 tile with AVX2: dot products of one group of activations. Included by
// lowbit_avx2.h.
//
// Written as assembly because of registers: 6 sums, 4 activations, 1 weight, 3 products and the ones take 15
// of
// 16. From intrinsics GCC 12 hoists the loads of several quads and spills the sums: 125-250 GOP/s on a core
// whose float32 peak is 118 GFLOP/s, against the numbers in lowbit_avx2.h for this order.
//
// Legend: a0, a1 activations of two rows; w unpacked weights [quad][3 panels][32 bytes].

#pragma once

#include <immintrin.h>

#include "layout.h"

// Activations of quads Q and R = Q + 1: rows 0 and 1 in x0, x1 and y0, y1.
#define TIANQUAN_LOAD_QUADS(Q, R) \
  "vpbroadcastd 4*" #Q            \
  "(%[a0]), %[x0]\n\t"            \
  "vpbroadcastd 4*" #Q            \
  "(%[a1]), %[x1]\n\t"            \
  "vpbroadcastd 4*" #R            \
  "(%[a0]), %[y0]\n\t"            \
  "vpbroadcastd 4*" #R "(%[a1]), %[y1]\n\t"

// One panel P of two quads: t0 and t1 receive the 16-bit sums of pairs of products.
#define TIANQUAN_PANEL(Q, R, P)       \
  "vmovdqa 32*(3*" #Q "+" #P          \
  ")(%[w]), %[v]\n\t"                 \
  "vpmaddubsw %[v], %[x0], %[t0]\n\t" \
  "vpmaddubsw %[v], %[x1], %[t1]\n\t" \
  "vmovdqa 32*(3*" #R "+" #P          \
  ")(%[w]), %[v]\n\t"                 \
  "vpmaddubsw %[v], %[y0], %[u]\n\t"  \
  "vpmaddubsw %[v], %[y1], %[v]\n\t"  \
  "vpaddw %[u], %[t0], %[t0]\n\t"     \
  "vpaddw %[v], %[t1], %[t1]\n\t"

// int4 sums stay in 16 bits; int8 sums are widened here, because the next pair would not fit.
#define TIANQUAN_INT4_PANEL(Q, R, P)   \
  TIANQUAN_PANEL(Q, R, P)              \
  "vpaddw %[t0], %[d0" #P "], %[d0" #P \
  "]\n\t"                              \
  "vpaddw %[t1], %[d1" #P "], %[d1" #P "]\n\t"
#define TIANQUAN_INT8_PANEL(Q, R, P)   \
  TIANQUAN_PANEL(Q, R, P)              \
  "vpmaddwd %[ones], %[t0], %[t0]\n\t" \
  "vpmaddwd %[ones], %[t1], %[t1]\n\t" \
  "vpaddd %[t0], %[d0" #P "], %[d0" #P \
  "]\n\t"                              \
  "vpaddd %[t1], %[d1" #P "], %[d1" #P "]\n\t"

#define TIANQUAN_QUADS(PANEL, Q, R) TIANQUAN_LOAD_QUADS(Q, R) PANEL(Q, R, 0) PANEL(Q, R, 1) PANEL(Q, R, 2)
#define TIANQUAN_8_QUADS(PANEL) \
  TIANQUAN_QUADS(PANEL, 0, 1)   \
  TIANQUAN_QUADS(PANEL, 2, 3)   \
  TIANQUAN_QUADS(PANEL, 4, 5)   \
  TIANQUAN_QUADS(PANEL, 6, 7)

namespace tianquan::TIANQUAN_ISA {

// dot[r][p] += 8 quads (32 in channels) of two rows and three panels.
template <Format F>
static inline __attribute__((always_inline)) void multiply_8_quads(const uint8_t* a0, const uint8_t* a1,
                                                                   const int8_t* w, __m256i ones,
                                                                   __m256i (&dot)[2][3]) {
  __m256i x0, x1, y0, y1, v, t0, t1, u;
  if constexpr (F == Format::kInt4) {
    asm volatile(TIANQUAN_8_QUADS(TIANQUAN_INT4_PANEL)
                 : [d00] "+x"(dot[0][0]), [d01] "+x"(dot[0][1]), [d02] "+x"(dot[0][2]), [d10] "+x"(dot[1][0]),
                   [d11] "+x"(dot[1][1]), [d12] "+x"(dot[1][2]), [x0] "=&x"(x0), [x1] "=&x"(x1),
                   [y0] "=&x"(y0), [y1] "=&x"(y1), [v] "=&x"(v), [t0] "=&x"(t0), [t1] "=&x"(t1), [u] "=&x"(u)
                 : [a0] "r"(a0), [a1] "r"(a1), [w] "r"(w)
                 : "memory");
  } else {
    asm volatile(TIANQUAN_8_QUADS(TIANQUAN_INT8_PANEL)
                 : [d00] "+x"(dot[0][0]), [d01] "+x"(dot[0][1]), [d02] "+x"(dot[0][2]), [d10] "+x"(dot[1][0]),
                   [d11] "+x"(dot[1][1]), [d12] "+x"(dot[1][2]), [x0] "=&x"(x0), [x1] "=&x"(x1),
                   [y0] "=&x"(y0), [y1] "=&x"(y1), [v] "=&x"(v), [t0] "=&x"(t0), [t1] "=&x"(t1), [u] "=&x"(u)
                 : [a0] "r"(a0), [a1] "r"(a1), [w] "r"(w), [ones] "x"(ones)
                 : "memory");
  }
}

}  // namespace tianquan::TIANQUAN_ISA

#undef TIANQUAN_LOAD_QUADS
#undef TIANQUAN_PANEL
#undef TIANQUAN_INT4_PANEL
#undef TIANQUAN_INT8_PANEL
#undef TIANQUAN_QUADS
#undef TIANQUAN_8_QUADS
