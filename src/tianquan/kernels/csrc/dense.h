// Float32 products: a register tile of 6 rows x 16 channels over packed 16-channel panels.
//
// Ceiling: two fused multiply-adds per cycle and core (32 operations). The tile holds 12 sums, 2 weights and
// 1 broadcast activation in 15 of 16 registers; 90 % of the peak in benchmarks/kernels.py, "dense". The same
// tile serves attention's scores and weighted values. With AVX-512 16 channels are one register and the tile
// has 12 rows: as many sums, and where a core starts two multiply-adds of 512 bits a cycle, twice the rate.
// Each sum is made of the same operations in the same order, so the bits do not depend on the width.

#pragma once

#include "simd.h"

namespace tianquan::TIANQUAN_ISA {

constexpr int kDenseWidth = 16;
constexpr int kWideRows = 4;  // of the tile for widths that are multiples of 24: as many sums, one load less
constexpr int kWideWidth = 24;

// The registers of W times 8 channels.
template <int W>
struct DenseLanes {
  using Type = F8;
};
#if defined(__AVX512F__)
constexpr int kDenseRows = 12;
constexpr bool kPrefersWide = false;
template <>
struct DenseLanes<2> {
  using Type = F16;
};
#else
constexpr int kDenseRows = 6;
constexpr bool kPrefersWide = true;
#endif

// c[r][0:8 W] (+)= sum over k of a[r * a_stride + k] * b[k][0:8 W], with W = 1, 2 or 3 registers of channels.
// b has rows of b_stride floats. With `accumulate` false, c is written without being read.
template <int R, int W>
TIANQUAN_INLINE void dense_tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                                int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  using Lanes = typename DenseLanes<W>::Type;
  constexpr int kLanes = sizeof(Lanes) / sizeof(float), V = 8 * W / kLanes;
  Lanes sum[R][V];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v)
      sum[r][v] = accumulate ? load_as<Lanes>(c + r * c_stride + v * kLanes) : Lanes{};
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Lanes weight[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) weight[v] = load_as<Lanes>(b + k * b_stride + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Lanes value = splat_as<Lanes>(a[r * a_stride + k]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[r][v] = fma(value, weight[v], sum[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) store(c + r * c_stride + v * kLanes, sum[r][v]);
  }
}

// The same for 1..R rows.
template <int W, int R = kDenseRows>
TIANQUAN_INLINE void dense_rows(int64_t rows, const float* a, int64_t a_stride, const float* b,
                                int64_t b_stride, int64_t depth, float* c, int64_t c_stride,
                                bool accumulate) {
  if (R == 1 || rows == R) return dense_tile<R, W>(a, a_stride, b, b_stride, depth, c, c_stride, accumulate);
  if constexpr (R > 1) dense_rows<W, R - 1>(rows, a, a_stride, b, b_stride, depth, c, c_stride, accumulate);
}

TIANQUAN_INLINE int64_t dense_bytes(Format format) { return format == Format::kFloat32 ? 4 : 2; }

// Eight values, or the first `count` of them, of a dense weight beginning at element `index`.
TIANQUAN_INLINE F8 load_dense(const Matrix& m, int64_t index, int64_t count) {
  if (m.format == Format::kFloat32) {
    const float* p = static_cast<const float*>(m.values) + index;
    return count >= 8 ? load(p) : load_some(p, count);
  }
  const uint16_t* p = static_cast<const uint16_t*>(m.values) + index;
  uint16_t padded[8] = {};
  if (count < 8) {
    std::memcpy(padded, p, static_cast<size_t>(count) * sizeof(uint16_t));
    p = padded;
  }
  return m.format == Format::kFloat16 ? load_half(p) : load_bfloat16(p);
}

// Transpose 8 rows of 8 values: out[i] receives element i of every row.
TIANQUAN_INLINE void transpose(const F8 in[8], float* out, int64_t stride) {
#if defined(__AVX2__)
  __m256 t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(in[2 * i], in[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(in[2 * i], in[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    store(out + i * stride, _mm256_permute2f128_ps(u[i], u[4 + i], 0x20));
    store(out + (4 + i) * stride, _mm256_permute2f128_ps(u[i], u[4 + i], 0x31));
  }
#else
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) out[i * stride + j] = in[j][i];
  }
#endif
}

// Pack channels [first, first + 16) and in channels [k0, k0 + depth) as float32 [k][16]; zero past the edge.
TIANQUAN_INLINE void pack_dense(const Matrix& m, int64_t first, int64_t k0, int64_t depth, float* to) {
  for (int64_t half = 0; half < kDenseWidth; half += 8) {
    for (int64_t k = 0; k < depth; k += 8) {
      F8 rows[8];
      for (int64_t r = 0; r < 8; ++r) {
        const int64_t channel = first + half + r;
        rows[r] = channel < m.out ? load_dense(m, channel * m.in + k0 + k, depth - k) : splat(0);
      }
      transpose(rows, to + k * kDenseWidth + half, kDenseWidth);  // the buffer has room for depth rounded up
    }
  }
}

// R rows of activations with channels [first, first + 4): for few rows, where reading the weight is the cost.
template <int R>
TIANQUAN_INLINE void multiply_dense_rows(const Matrix& m, int64_t first, int64_t channels, const float* x,
                                         int64_t x_stride, float* sums, int64_t sums_stride) {
  constexpr int kChannels = 4;
  F8 sum[R][kChannels];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < kChannels; ++c) sum[r][c] = splat(0);
  }
  const char* values = static_cast<const char*>(m.values);
  const int64_t bytes = dense_bytes(m.format);
  for (int64_t k = 0; k < m.in; k += 8) {
    F8 value[R];
    for (int r = 0; r < R; ++r) {
      const float* p = x + r * x_stride + k;
      value[r] = k + 8 <= m.in ? load(p) : load_some(p, m.in - k);
    }
    for (int c = 0; c < kChannels; ++c) {
      const int64_t index = (first + (c < channels ? c : 0)) * m.in + k;
      prefetch(values + index * bytes + 1024);
      const F8 weight = load_dense(m, index, m.in - k);
      for (int r = 0; r < R; ++r) sum[r][c] = fma(value[r], weight, sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < channels; ++c) sums[r * sums_stride + c] = horizontal_sum(sum[r][c]);
  }
}

}  // namespace tianquan::TIANQUAN_ISA
