// Low-bit products with AVX2. Included by lowbit.h.
//
// Ceiling: two byte multiplies per cycle and core. int4 needs 9 multiplies per 8 x 64 operations of a group
// and panel (8 products, one widening): 114 operations per cycle; int8 needs 3 per 2 x 64: 85. The float32
// peak is 32. A tile of 2 rows x 3 panels measured 280 GOP/s (int4), 245 (int4 with zero points) and 250
// (int8) from the first-level cache, on a core with a float32 peak of 118 GFLOP/s. Products with few rows
// stream the packed codes: one row takes 17 cycles for a panel and group (144 bytes), 31 GB/s of such a core,
// above what memory gives it; 4 rows x 2 panels take 9.4 cycles for each row, 200 GOP/s. Benchmark:
// benchmarks/kernels.py, "batches" and "decode".

#pragma once

#include "lowbit.h"
#include "tile_avx2.h"

namespace tianquan::TIANQUAN_ISA {

constexpr int64_t kPrefetchBytes = 8192;  // ahead of the stream of codes in a product with few rows

TIANQUAN_INLINE __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
TIANQUAN_INLINE __m256i broadcast_quad(const uint8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, sizeof quad);
  return _mm256_set1_epi32(quad);
}
// sum += a * b in 16 bits. The empty assembly keeps the addition here: GCC 12 otherwise reassociates a chain
// of them, computes the products of a whole group first, and spills those.
TIANQUAN_INLINE void add_products(__m256i& sum, __m256i a, __m256i b) {
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b));
  asm volatile("" : "+x"(sum));
}
TIANQUAN_INLINE F8 int_to_float(__m256i v) { return _mm256_cvtepi32_ps(v); }

// Unpack activation group `g` of one panel into place `slot` of P panels.
template <int P>
TIANQUAN_INLINE void unpack_int4(const Panel& panel, int64_t g, int64_t local_group, int p,
                                 const UnpackedPanels& to) {
  const __m256i mask = _mm256_set1_epi8(15), bias = _mm256_set1_epi8(kInt4Bias);
  const __m256i ones8 = _mm256_set1_epi8(1);
  const uint8_t* from = panel.codes + g * kInt4Activations * kPanel / 2;
  int8_t* codes = to.codes + (local_group * 8 * P + p) * kUnitBytes;
  __m256i sum = _mm256_setzero_si256();
  for (int unit = 0; unit < 4; ++unit) {
    const __m256i packed = load_bytes(from + unit * kUnitBytes);
    const __m256i low = _mm256_sub_epi8(_mm256_and_si256(packed, mask), bias);
    const __m256i high = _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(packed, 4), mask), bias);
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + (2 * unit) * P * kUnitBytes), low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + (2 * unit + 1) * P * kUnitBytes), high);
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones8, low));
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones8, high));
  }
  const int64_t slot = local_group * P + p;
  // 16-bit lanes, like the sums they start: 128 * 16 codes of at most 8 fit, and so does every final sum
  const __m256i start = _mm256_slli_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), sum), 7);
  _mm256_store_si256(reinterpret_cast<__m256i*>(to.starts + slot * kPanel), start);
  unpack_scales(panel, g, slot, to);
}

template <int P>
TIANQUAN_INLINE void unpack_int8(const Panel& panel, int64_t g, int64_t local_group, int p,
                                 const UnpackedPanels& to) {
  const __m256i ones8 = _mm256_set1_epi8(1);
  const uint8_t* from = panel.codes + g * kInt8Activations * kPanel;
  int8_t* codes = to.codes + (local_group * 16 * P + p) * kUnitBytes;
  __m256i sum = _mm256_setzero_si256();
  for (int quad = 0; quad < 16; ++quad) {
    const __m256i bytes = load_bytes(from + quad * kUnitBytes);
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + quad * P * kUnitBytes), bytes);
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones8, bytes));
  }
  const int64_t slot = local_group * P + p;
  const __m256i start = _mm256_madd_epi16(sum, _mm256_set1_epi16(-kInt8ActivationBias));
  _mm256_store_si256(reinterpret_cast<__m256i*>(to.starts + slot * kPanel), start);
  unpack_scales(panel, g, slot, to);
}

// sums[r][8 p ..] += products of R rows with P panels over `num_groups` groups beginning at row group `g0`.
template <Format F, int R, int P, bool kHasOffsets>
TIANQUAN_INLINE void multiply_tile(const QuantizedRows& rows, int64_t row, int64_t g0, int64_t num_groups,
                                   const UnpackedPanels& w, float* sums) {
  constexpr bool kIsInt4 = F == Format::kInt4;
  constexpr int kGroup = kIsInt4 ? kInt4Activations : kInt8Activations;
  constexpr int kQuads = kGroup / 4;
  const __m256i ones16 = _mm256_set1_epi16(1);
  const int64_t stride = rows.padded, groups = rows.groups;
  const uint8_t* a = rows.codes + row * stride + g0 * kGroup;
  const float* a_scales = rows.scales + row * groups + g0;
  const int32_t* a_sums = rows.sums + row * groups + g0;
  const int8_t* codes = w.codes;
  F8 sum[R][P];
#pragma GCC unroll 8
  for (int i = 0; i < R * P; ++i) sum[i / P][i % P] = load(sums + i / P * kTileWidth + i % P * kPanel);
  for (int64_t g = 0; g < num_groups; ++g, a += kGroup, codes += kQuads * P * kUnitBytes) {
    __m256i dot[R][P];
#pragma GCC unroll 8
    for (int i = 0; i < R * P; ++i) {
      dot[i / P][i % P] = load_bytes(w.starts + (g * P + i % P) * kPanel);
    }
    // the next tile's rows: short runs that the hardware prefetcher does not follow
    prefetch(a + 2 * stride);
    prefetch(a + 3 * stride);
    if constexpr (R == 2 && P == 3) {
      multiply_8_quads<F>(a, a + stride, codes, ones16, dot);
      if constexpr (!kIsInt4)
        multiply_8_quads<F>(a + 32, a + stride + 32, codes + 8 * P * kUnitBytes, ones16, dot);
    } else {
#pragma GCC unroll 2
      for (int quad = 0; quad < kQuads; quad += 2) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m256i first = broadcast_quad(a + r * stride + quad * 4);
          const __m256i second = broadcast_quad(a + r * stride + quad * 4 + 4);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p) {
            const int8_t* weights = codes + (quad * P + p) * kUnitBytes;
            __m256i product = _mm256_maddubs_epi16(first, load_bytes(weights));
            product =
                _mm256_add_epi16(product, _mm256_maddubs_epi16(second, load_bytes(weights + P * kUnitBytes)));
            dot[r][p] = kIsInt4 ? _mm256_add_epi16(dot[r][p], product)
                                : _mm256_add_epi32(dot[r][p], _mm256_madd_epi16(product, ones16));
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float a_scale = a_scales[r * groups + g];
      const float a_sum = a_scale * static_cast<float>(a_sums[r * groups + g]);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const int64_t slot = (g * P + p) * kPanel;
        const F8 d = int_to_float(kIsInt4 ? _mm256_madd_epi16(dot[r][p], ones16) : dot[r][p]);
        sum[r][p] = fma(splat(a_scale) * load(w.scales + slot), d, sum[r][p]);
        if constexpr (kHasOffsets) sum[r][p] = fma(splat(a_sum), load(w.offsets + slot), sum[r][p]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R * P; ++i) store(sums + i / P * kTileWidth + i % P * kPanel, sum[i / P][i % P]);
}

// How far ahead of P streams of codes to prefetch. Two streams side by side end together, so what comes next
// is the next pair.
template <int P>
TIANQUAN_INLINE int64_t prefetch_distance(const Panel* panels) {
  return P == 1 ? kPrefetchBytes : P * (panels[P - 1].codes - panels[0].codes);
}

// sums[r][p] += products of R rows with P panels straight from their packed codes, for few rows. One row
// costs reading; several cost arithmetic again, so that a pair of panels shares each broadcast of
// activations.
template <int R, int P>
TIANQUAN_INLINE void multiply_panels_int4(const Panel* panels, int64_t num_groups, const QuantizedRows& rows,
                                          int64_t row, F8 (*sums)[P]) {
  const __m256i mask = _mm256_set1_epi8(15), ones16 = _mm256_set1_epi16(1);
  const int64_t ahead = prefetch_distance<P>(panels);
  const int64_t step = panels[P - 1].codes - panels[0].codes;
  const Panel first = panels[0], second = panels[P - 1];
  const uint8_t* codes = first.codes;
  const int64_t stride = rows.padded, groups = rows.groups;
  const uint8_t* a = rows.codes + row * stride;
  const float* a_scales = rows.scales + row * groups;
  const int32_t* starts = rows.starts + row * groups;
  F8 sum[R][P];
#pragma GCC unroll 8
  for (int i = 0; i < R * P; ++i) sum[i / P][i % P] = sums[i / P][i % P];
  for (int64_t g = 0; g < num_groups; ++g, a += kInt4Activations, codes += 4 * kUnitBytes) {
    __m256i dot[R][P];
#pragma GCC unroll 8
    for (int i = 0; i < R * P; ++i) {
      if (i < P) prefetch(codes + i * step + ahead);
      if (i < P) prefetch(codes + i * step + ahead + 64);
      dot[i / P][i % P] = _mm256_set1_epi32(starts[i / P * groups + g]);
    }
#pragma GCC unroll 4
    for (int unit = 0; unit < 4; ++unit) {
      __m256i low[P], high[P];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        const __m256i packed = load_bytes(codes + p * step + unit * kUnitBytes);
        low[p] = _mm256_and_si256(packed, mask);
        high[p] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const uint8_t* at = a + r * stride + unit * kInt4UnitInputs;
        const __m256i quad = broadcast_quad(at);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) add_products(dot[r][p], low[p], quad);
        const __m256i next_quad = broadcast_quad(at + 4);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) add_products(dot[r][p], high[p], next_quad);
      }
    }
    const F8 scale[2] = {first.scale(g), second.scale(g)};
#pragma GCC unroll 8
    for (int i = 0; i < R * P; ++i) {
      const int r = i / P, p = i % P;
      const F8 d = int_to_float(_mm256_madd_epi16(dot[r][p], ones16));
      sum[r][p] = fma(splat(a_scales[r * groups + g]) * scale[p], d, sum[r][p]);
    }
    if (first.zero_points) {
      const F8 offset[2] = {first.offset(g), second.offset(g)};
#pragma GCC unroll 8
      for (int i = 0; i < R * P; ++i) {
        const int64_t at = (row + i / P) * groups + g;
        const F8 a_sum = splat(rows.scales[at] * static_cast<float>(rows.sums[at]));
        sum[i / P][i % P] = fma(a_sum, offset[i % P], sum[i / P][i % P]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R * P; ++i) sums[i / P][i % P] = sum[i / P][i % P];
}

template <int R, int P>
TIANQUAN_INLINE void multiply_panels_int8(const Panel* panels, int64_t num_groups, const QuantizedRows& rows,
                                          int64_t row, F8 (*sums)[P]) {
  const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
  const int64_t ahead = prefetch_distance<P>(panels);
  const int64_t step = panels[P - 1].codes - panels[0].codes;
  const uint8_t* codes = panels[0].codes;
  const uint8_t* a = rows.codes + row * rows.padded;
  for (int64_t g = 0; g < num_groups; ++g, a += kInt8Activations) {
    __m256i dot[R][P], total[P];
#pragma GCC unroll 8
    for (int i = 0; i < R * P; ++i) {
      total[i % P] = _mm256_setzero_si256();
      dot[i / P][i % P] = _mm256_setzero_si256();
    }
#pragma GCC unroll 4
    for (int quad = 0; quad < 16; quad += 2, codes += 2 * kUnitBytes) {
      __m256i first[P], second[P];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        prefetch(codes + p * step + ahead);
        first[p] = load_bytes(codes + p * step);
        second[p] = load_bytes(codes + p * step + kUnitBytes);
        total[p] = _mm256_add_epi16(total[p], _mm256_maddubs_epi16(ones8, first[p]));
        total[p] = _mm256_add_epi16(total[p], _mm256_maddubs_epi16(ones8, second[p]));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const uint8_t* at = a + r * rows.padded + quad * 4;
        const __m256i a0 = broadcast_quad(at), a1 = broadcast_quad(at + 4);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
          const __m256i product =
              _mm256_add_epi16(_mm256_maddubs_epi16(a0, first[p]), _mm256_maddubs_epi16(a1, second[p]));
          dot[r][p] = _mm256_add_epi32(dot[r][p], _mm256_madd_epi16(product, ones16));
          asm volatile("" : "+x"(dot[r][p]));
        }
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      const __m256i correction = _mm256_madd_epi16(total[p], _mm256_set1_epi16(kInt8ActivationBias));
      const F8 scale = panels[p].scale(g);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F8 d = int_to_float(_mm256_sub_epi32(dot[r][p], correction));
        sums[r][p] = fma(splat(rows.scales[(row + r) * rows.groups + g]) * scale, d, sums[r][p]);
      }
    }
  }
}

}  // namespace tianquan::TIANQUAN_ISA
