// Dot products of the low-bit kernels with AVX2. Included by lowbit_x86.h.
//
// Ceiling: two byte multiplies per cycle and core. int4 needs 9 multiplies per 8 x 64 operations of a group
// and panel (8 products, one widening): 114 operations per cycle; int8 needs 3 per 2 x 64: 85. The float32
// peak is 32. A tile of 2 rows x 3 panels measured 280 GOP/s (int4), 245 (int4 with zero points) and 250
// (int8) from the first-level cache, on a core with a float32 peak of 118 GFLOP/s; whole products 230 (int4)
// and 220 (int8).
//
// The tile is written as assembly because of registers: 6 sums, 4 activations, 1 weight, 3 products and the
// ones take 15 of 16. From intrinsics GCC 12 hoists the loads of several quads and spills the sums: 125-250
// GOP/s on a core whose float32 peak is 118 GFLOP/s, against the numbers above for this order.
//
// Legend: a0, a1 activations of two rows; w unpacked weights [quad][3 panels][32 bytes].

#pragma once

#include "lanes.h"

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

// A row's products with a unit of packed int4 codes, whose nibbles are in ymm8 (low) and ymm9 (high).
#define TIANQUAN_PACKED_ROW(U, A, D)        \
  "vpbroadcastd 8*" #U "(" A                \
  "), %%ymm10\n\t"                          \
  "vpbroadcastd 8*" #U "+4(" A              \
  "), %%ymm11\n\t"                          \
  "vpmaddubsw %%ymm10, %%ymm8, %%ymm12\n\t" \
  "vpmaddubsw %%ymm11, %%ymm9, %%ymm13\n\t" \
  "vpaddw %%ymm12, %[d" #D "], %[d" #D      \
  "]\n\t"                                   \
  "vpaddw %%ymm13, %[d" #D "], %[d" #D "]\n\t"
#define TIANQUAN_PACKED_UNIT(U)                                                                 \
  "vmovdqu 32*" #U                                                                              \
  "(%[codes]), %%ymm8\n\t"                                                                      \
  "vpsrlw $4, %%ymm8, %%ymm9\n\t"                                                               \
  "vpand %[mask], %%ymm8, %%ymm8\n\t"                                                           \
  "vpand %[mask], %%ymm9, %%ymm9\n\t" TIANQUAN_PACKED_ROW(U, "%[a0]", 0)                        \
      TIANQUAN_PACKED_ROW(U, "%[a0],%[s]", 1) TIANQUAN_PACKED_ROW(U, "%[a0],%[s],2", 2)         \
          TIANQUAN_PACKED_ROW(U, "%[a0],%[s3]", 3) TIANQUAN_PACKED_ROW(U, "%[a4]", 4)           \
              TIANQUAN_PACKED_ROW(U, "%[a4],%[s]", 5) TIANQUAN_PACKED_ROW(U, "%[a4],%[s],2", 6) \
                  TIANQUAN_PACKED_ROW(U, "%[a4],%[s3]", 7)

namespace tianquan::TIANQUAN_ISA {

constexpr int64_t kFewRows = 12;  // measured: with more rows unpacking first is faster
constexpr int kTileRows = 2;
constexpr int kTilePanels = 3;
constexpr int kStreamRows = 8;          // rows of a pass over packed codes
constexpr bool kHasPackedGroup = true;  // multiply_packed_group, for so many

// Panels side by side in a pass of R rows. Two share the broadcasts of activations, and with 3 or 4 rows of
// int4 still leave registers for the sums; one streams the weight and keeps the activations in the cache.
template <Format F, int R>
constexpr int kStreamPanels = F == Format::kInt4 && (R == 3 || R == 4) ? 2 : 1;

template <int P>
struct LanesOf {
  using Type = PanelLanes;
};

// sum += u0 s0 + u1 s1, unsigned times signed bytes, 4 products of each a lane. The empty assembly keeps the
// additions here: GCC 12 otherwise reassociates a chain of them, computes the products of a whole group
// first, and spills those.
template <Format F>
TIANQUAN_INLINE void add_products(__m256i& sum, __m256i u0, __m256i s0, __m256i u1, __m256i s1) {
  if constexpr (F == Format::kInt4) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(u0, s0));
    asm volatile("" : "+x"(sum));
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(u1, s1));
  } else {
    const __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(u0, s0), _mm256_maddubs_epi16(u1, s1));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
  }
  asm volatile("" : "+x"(sum));
}

// The sum of a group in 32 bits.
template <Format F>
TIANQUAN_INLINE __m256i whole_sum(__m256i sum) {
  return F == Format::kInt4 ? _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) : sum;
}

// dot[r] += one int4 group of eight rows, `stride` bytes apart, with the packed codes of one panel.
static inline __attribute__((always_inline)) void multiply_packed_group(const uint8_t* a, int64_t stride,
                                                                        const uint8_t* codes,
                                                                        __m256i (&dot)[8][1]) {
  const __m256i mask = _mm256_set1_epi8(15);
  asm volatile(TIANQUAN_PACKED_UNIT(0) TIANQUAN_PACKED_UNIT(1) TIANQUAN_PACKED_UNIT(2) TIANQUAN_PACKED_UNIT(3)
               : [d0] "+x"(dot[0][0]), [d1] "+x"(dot[1][0]), [d2] "+x"(dot[2][0]), [d3] "+x"(dot[3][0]),
                 [d4] "+x"(dot[4][0]), [d5] "+x"(dot[5][0]), [d6] "+x"(dot[6][0]), [d7] "+x"(dot[7][0])
               : [a0] "r"(a), [a4] "r"(a + 4 * stride), [s] "r"(stride), [s3] "r"(3 * stride),
                 [codes] "r"(codes), [mask] "x"(mask)
               : "memory", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13");
}

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

// dot[r][p] += one group of R rows, `stride` bytes apart, with unpacked weights [quad][P][8 out][4 in].
template <Format F, int R, int P>
TIANQUAN_INLINE void multiply_group(const uint8_t* a, int64_t stride, const int8_t* codes,
                                    __m256i (&dot)[R][P]) {
  constexpr int kQuads = (F == Format::kInt4 ? kInt4Activations : kInt8Activations) / 4;
  if constexpr (R == 2 && P == 3) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int quad = 0; quad < kQuads; quad += 8) {
      multiply_8_quads<F>(a + quad * 4, a + stride + quad * 4, codes + quad * P * kUnitBytes, ones, dot);
    }
  } else {
#pragma GCC unroll 2
    for (int quad = 0; quad < kQuads; quad += 2) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t bytes[2];
        std::memcpy(bytes, a + r * stride + quad * 4, sizeof bytes);
        const __m256i first = _mm256_set1_epi32(bytes[0]), second = _mm256_set1_epi32(bytes[1]);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
          const int8_t* weights = codes + (quad * P + p) * kUnitBytes;
          add_products<F>(dot[r][p], first, PanelLanes::load(weights), second,
                          PanelLanes::load(weights + P * kUnitBytes));
        }
      }
    }
  }
}

}  // namespace tianquan::TIANQUAN_ISA

#undef TIANQUAN_LOAD_QUADS
#undef TIANQUAN_PANEL
#undef TIANQUAN_INT4_PANEL
#undef TIANQUAN_INT8_PANEL
#undef TIANQUAN_QUADS
#undef TIANQUAN_8_QUADS
