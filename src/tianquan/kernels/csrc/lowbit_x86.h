// Low-bit products with AVX2 or AVX-512 VNNI: many rows meet weights that were unpacked into the first-level
// cache, few rows stream the packed codes. Included by lowbit.h; ceilings of the arithmetic in tile_avx2.h
// and tile_vnni.h.
//
// With few rows one row takes 17 cycles of AVX2 for a panel and group (144 bytes), 31 GB/s of a core of 3.7
// GHz, above what memory gives it; 4 rows x 2 panels take 9.4 cycles for each row, 200 GOP/s. 8 rows x 1
// panel need 8 % fewer instructions of the three vector ports of Sapphire Rapids, where two cores gave 295
// GOP/s of the 360 that the ports allow: a step of 8 sequences then takes 141 ms, however fast memory is.
// Benchmark: benchmarks/kernels.py, "batches" and "decode".

#pragma once

#include "lowbit.h"
#if defined(__AVX512VNNI__)
#include "tile_vnni.h"
#else
#include "tile_avx2.h"
#endif

namespace tianquan::TIANQUAN_ISA {

constexpr int kTileWidth = kTilePanels * kPanel;  // floats of a row of a tile's sums
constexpr int64_t kPrefetchBytes = 8192;          // ahead of each stream of codes in a product with few rows

// What a group's sums with signed codes start from: -bias times the sum of the codes, in the form of the
// sums.
template <Format F>
TIANQUAN_INLINE void store_starts(__m256i pair_sums, int32_t* to) {
  constexpr int kBias = F == Format::kInt4 ? kInt4ActivationBias : kInt8ActivationBias;
  __m256i start;
  if constexpr (F == Format::kInt4 && kSumsInHalves) {
    // 128 * 16 codes of at most 8 fit 16 bits, and so does every final sum
    start = _mm256_mullo_epi16(pair_sums, _mm256_set1_epi16(-kBias));
  } else {
    start = _mm256_madd_epi16(pair_sums, _mm256_set1_epi16(-kBias));
  }
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), start);
}

// Unpack activation group `g` of one panel into place `p` of P panels.
template <int P>
TIANQUAN_INLINE void unpack_int4(const Panel& panel, int64_t g, int64_t local_group, int p,
                                 const UnpackedPanels& to) {
  const __m256i bias = _mm256_set1_epi8(kInt4Bias), ones = _mm256_set1_epi8(1);
  const uint8_t* from = panel.codes + g * kInt4Activations * kPanel / 2;
  int8_t* codes = to.codes + (local_group * 8 * P + p) * kUnitBytes;
  __m256i sum = _mm256_setzero_si256();
  for (int unit = 0; unit < 4; ++unit) {
    if (unit % 2 == 0) prefetch_later(from + unit * kUnitBytes + kLowBitDepth * kPanel / 2);
    const __m256i packed = PanelLanes::load(from + unit * kUnitBytes);
    const __m256i low = _mm256_sub_epi8(PanelLanes::low_nibbles(packed), bias);
    const __m256i high = _mm256_sub_epi8(PanelLanes::high_nibbles(packed), bias);
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + (2 * unit) * P * kUnitBytes), low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + (2 * unit + 1) * P * kUnitBytes), high);
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones, low));
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones, high));
  }
  const int64_t slot = local_group * P + p;
  store_starts<Format::kInt4>(sum, to.starts + slot * kPanel);
  unpack_scales(panel, g, slot, to);
}

template <int P>
TIANQUAN_INLINE void unpack_int8(const Panel& panel, int64_t g, int64_t local_group, int p,
                                 const UnpackedPanels& to) {
  const __m256i ones = _mm256_set1_epi8(1);
  const uint8_t* from = panel.codes + g * kInt8Activations * kPanel;
  int8_t* codes = to.codes + (local_group * 16 * P + p) * kUnitBytes;
  __m256i sum = _mm256_setzero_si256();
  for (int quad = 0; quad < 16; ++quad) {
    if (quad % 2 == 0) prefetch_later(from + quad * kUnitBytes + kLowBitDepth * kPanel);
    const __m256i bytes = PanelLanes::load(from + quad * kUnitBytes);
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + quad * P * kUnitBytes), bytes);
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones, bytes));
  }
  const int64_t slot = local_group * P + p;
  store_starts<Format::kInt8>(sum, to.starts + slot * kPanel);
  unpack_scales(panel, g, slot, to);
}

// sums[r][8 p ..] += products of R rows with P panels over `num_groups` groups beginning at row group `g0`.
template <Format F, int R, int P, bool kHasOffsets>
TIANQUAN_INLINE void multiply_tile(const QuantizedRows& rows, int64_t row, int64_t g0, int64_t num_groups,
                                   const UnpackedPanels& w, float* sums) {
  using Lanes = typename LanesOf<P>::Type;
  constexpr int V = P / Lanes::kPanels;            // registers of a row
  constexpr int kWidth = Lanes::kPanels * kPanel;  // out channels of a register
  constexpr int kGroup = F == Format::kInt4 ? kInt4Activations : kInt8Activations;
  const int64_t stride = rows.padded, groups = rows.groups;
  const uint8_t* a = rows.codes + row * stride + g0 * kGroup;
  const float* a_scales = rows.scales + row * groups + g0;
  const int32_t* a_sums = rows.sums + row * groups + g0;
  const int8_t* codes = w.codes;
  typename Lanes::Float sum[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R * V; ++i) sum[i / V][i % V] = Lanes::load(sums + i / V * kTileWidth + i % V * kWidth);
  for (int64_t g = 0; g < num_groups; ++g, a += kGroup, codes += kGroup / 4 * P * kUnitBytes) {
    typename Lanes::Int dot[R][V];
#pragma GCC unroll 16
    for (int i = 0; i < R * V; ++i) {
      const int32_t* start = w.starts + g * P * kPanel + i % V * kWidth;
      dot[i / V][i % V] = Lanes::load(static_cast<const void*>(start));
    }
    // the next tile's rows: short runs that the hardware prefetcher does not follow
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) prefetch(a + (kTileRows + r) * stride);
    multiply_group<F, R, P>(a, stride, codes, dot);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const float a_scale = a_scales[r * groups + g];
      const float a_sum = a_scale * static_cast<float>(a_sums[r * groups + g]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int64_t slot = g * P * kPanel + v * kWidth;
        const typename Lanes::Float d = Lanes::to_float(whole_sum<F>(dot[r][v]));
        sum[r][v] = Lanes::fma(a_scale * Lanes::load(w.scales + slot), d, sum[r][v]);
        if constexpr (kHasOffsets) {
          sum[r][v] = Lanes::fma(Lanes::splat(a_sum), Lanes::load(w.offsets + slot), sum[r][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R * V; ++i) Lanes::store(sums + i / V * kTileWidth + i % V * kWidth, sum[i / V][i % V]);
}

TIANQUAN_INLINE int32_t load_quad(const uint8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, sizeof quad);
  return quad;
}

// P panels whose packed codes are read side by side, for few rows.
template <int P>
struct PanelStream {
  using Lanes = typename LanesOf<P>::Type;
  static constexpr int V = P / Lanes::kPanels;
  const Panel* panels;
  const uint8_t* codes;  // of the first panel
  int64_t step;          // bytes from panel to panel
  int64_t ahead;         // how far to prefetch: two panels end together, and what comes next is the next two

  TIANQUAN_INLINE_MEMBER explicit PanelStream(const Panel* from)
      : panels(from),
        codes(from[0].codes),
        step(from[P - 1].codes - codes),
        ahead(P == 1 ? kPrefetchBytes : P * step) {
    static_assert(P <= 2);
  }
  // Register v of the units `at` bytes from where the stream stands.
  TIANQUAN_INLINE_MEMBER typename Lanes::Int load(int64_t at, int v) const {
    return Lanes::load_units(codes + at + v * step, step);
  }
  TIANQUAN_INLINE_MEMBER void prefetch_units(int64_t at) const {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) prefetch(codes + at + p * step + ahead);
  }
  TIANQUAN_INLINE_MEMBER typename Lanes::Float scale(int v, int64_t g) const {
    const F8 scales[2] = {panels[v].scale(g), panels[P - 1].scale(g)};
    return Lanes::join(scales);
  }
  TIANQUAN_INLINE_MEMBER typename Lanes::Float offset(int v, int64_t g) const {
    const F8 offsets[2] = {panels[v].offset(g), panels[P - 1].offset(g)};
    return Lanes::join(offsets);
  }
};

// sums[r][8 p ..] = products of R rows with P panels straight from their packed codes, for few rows. One row
// costs reading; several cost arithmetic again, so that two panels share each broadcast of activations.
template <int R, int P>
TIANQUAN_INLINE void multiply_panels_int4(const Panel* panels, int64_t num_groups, const QuantizedRows& rows,
                                          int64_t row, float* sums) {
  using Lanes = typename LanesOf<P>::Type;
  constexpr int V = P / Lanes::kPanels;
  PanelStream<P> stream(panels);
  const int64_t stride = rows.padded, groups = rows.groups;
  const uint8_t* a = rows.codes + row * stride;
  const float* a_scales = rows.scales + row * groups;
  const int32_t* starts = rows.starts + row * groups;
  typename Lanes::Float sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R * V; ++i) sum[i / V][i % V] = Lanes::splat(0);
  for (int64_t g = 0; g < num_groups; ++g, a += kInt4Activations, stream.codes += 4 * kUnitBytes) {
    typename Lanes::Int dot[R][V];
#pragma GCC unroll 8
    for (int i = 0; i < R * V; ++i) dot[i / V][i % V] = Lanes::broadcast(starts[i / V * groups + g]);
    if constexpr (kHasPackedGroup && R == 8 && P == 1) {
      stream.prefetch_units(0);
      stream.prefetch_units(2 * kUnitBytes);
      multiply_packed_group(a, stride, stream.codes, dot);
    } else {
#pragma GCC unroll 4
      for (int unit = 0; unit < 4; ++unit) {
        if (unit % 2 == 0) stream.prefetch_units(unit * kUnitBytes);
        typename Lanes::Int low[V], high[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          const typename Lanes::Int packed = stream.load(unit * kUnitBytes, v);
          low[v] = Lanes::low_nibbles(packed);
          high[v] = Lanes::high_nibbles(packed);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const uint8_t* at = a + r * stride + unit * kInt4UnitInputs;
          const typename Lanes::Int first = Lanes::broadcast(load_quad(at));
          const typename Lanes::Int second = Lanes::broadcast(load_quad(at + 4));
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) add_products<Format::kInt4>(dot[r][v], low[v], first, high[v], second);
        }
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const typename Lanes::Float scale = stream.scale(v, g);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename Lanes::Float d = Lanes::to_float(whole_sum<Format::kInt4>(dot[r][v]));
        sum[r][v] = Lanes::fma(a_scales[r * groups + g] * scale, d, sum[r][v]);
      }
    }
    if (!panels[0].zero_points) continue;
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const typename Lanes::Float offset = stream.offset(v, g);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const float a_sum = a_scales[r * groups + g] * static_cast<float>(rows.sums[(row + r) * groups + g]);
        sum[r][v] = Lanes::fma(Lanes::splat(a_sum), offset, sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R * V; ++i) Lanes::store(sums + i * Lanes::kPanels * kPanel, sum[i / V][i % V]);
}

template <int R, int P>
TIANQUAN_INLINE void multiply_panels_int8(const Panel* panels, int64_t num_groups, const QuantizedRows& rows,
                                          int64_t row, float* sums) {
  using Lanes = typename LanesOf<P>::Type;
  using Int = typename Lanes::Int;
  constexpr int V = P / Lanes::kPanels;
  PanelStream<P> stream(panels);
  const Int bias = Lanes::broadcast(kInt8ActivationBias * 0x01010101);
  const uint8_t* a = rows.codes + row * rows.padded;
  typename Lanes::Float sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R * V; ++i) sum[i / V][i % V] = Lanes::splat(0);
  for (int64_t g = 0; g < num_groups; ++g, a += kInt8Activations, stream.codes += 16 * kUnitBytes) {
    Int dot[R][V], correction[V];
#pragma GCC unroll 8
    for (int i = 0; i < R * V; ++i) dot[i / V][i % V] = correction[i % V] = Lanes::broadcast(0);
#pragma GCC unroll 4
    for (int quad = 0; quad < 16; quad += 2) {
      stream.prefetch_units(quad * kUnitBytes);
      Int first[V], second[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        first[v] = stream.load(quad * kUnitBytes, v);
        second[v] = stream.load((quad + 1) * kUnitBytes, v);
        add_products<Format::kInt8>(correction[v], bias, first[v], bias, second[v]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const uint8_t* at = a + r * rows.padded + quad * 4;
        const Int a0 = Lanes::broadcast(load_quad(at)), a1 = Lanes::broadcast(load_quad(at + 4));
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) add_products<Format::kInt8>(dot[r][v], a0, first[v], a1, second[v]);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const typename Lanes::Float scale = stream.scale(v, g);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename Lanes::Float d = Lanes::to_float(Lanes::subtract(dot[r][v], correction[v]));
        sum[r][v] = Lanes::fma(rows.scales[(row + r) * rows.groups + g] * scale, d, sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R * V; ++i) Lanes::store(sums + i * Lanes::kPanels * kPanel, sum[i / V][i % V]);
}

}  // namespace tianquan::TIANQUAN_ISA
