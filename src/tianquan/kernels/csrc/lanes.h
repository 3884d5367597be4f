// The registers of the low-bit kernels of x86: one panel (8 out channels x 4 bytes), or with AVX-512 two.
//
// Kernels are written once over these; what a dot product is made of is in tile_avx2.h and tile_vnni.h.

#pragma once

#include "simd.h"

namespace tianquan::TIANQUAN_ISA {

struct PanelLanes {
  using Int = __m256i;
  using Float = F8;
  static constexpr int kPanels = 1;
  TIANQUAN_INLINE_MEMBER static Int load(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  // The unit at `p`, and that of the next panel `step` bytes further where a register holds two.
  TIANQUAN_INLINE_MEMBER static Int load_units(const uint8_t* p, int64_t) { return load(p); }
  TIANQUAN_INLINE_MEMBER static Int broadcast(int32_t quad) { return _mm256_set1_epi32(quad); }
  TIANQUAN_INLINE_MEMBER static Int low_nibbles(Int packed) {
    return _mm256_and_si256(packed, _mm256_set1_epi8(15));
  }
  TIANQUAN_INLINE_MEMBER static Int high_nibbles(Int packed) {
    return low_nibbles(_mm256_srli_epi16(packed, 4));
  }
  TIANQUAN_INLINE_MEMBER static Int subtract(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  TIANQUAN_INLINE_MEMBER static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
  TIANQUAN_INLINE_MEMBER static Float load(const float* p) { return _mm256_loadu_ps(p); }
  TIANQUAN_INLINE_MEMBER static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  TIANQUAN_INLINE_MEMBER static Float splat(float x) { return _mm256_set1_ps(x); }
  TIANQUAN_INLINE_MEMBER static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  TIANQUAN_INLINE_MEMBER static Float join(const F8* panels) { return panels[0]; }
};

#if defined(__AVX512F__)
struct PairLanes {
  using Int = __m512i;
  using Float = F16;
  static constexpr int kPanels = 2;
  TIANQUAN_INLINE_MEMBER static Int load(const void* p) { return _mm512_loadu_si512(p); }
  TIANQUAN_INLINE_MEMBER static Int load_units(const uint8_t* p, int64_t step) {
    return _mm512_mask_broadcast_i64x4(_mm512_castsi256_si512(PanelLanes::load(p)), 0xF0,
                                       PanelLanes::load(p + step));
  }
  TIANQUAN_INLINE_MEMBER static Int broadcast(int32_t quad) { return _mm512_set1_epi32(quad); }
  TIANQUAN_INLINE_MEMBER static Int low_nibbles(Int packed) {
    return _mm512_and_si512(packed, _mm512_set1_epi8(15));
  }
  TIANQUAN_INLINE_MEMBER static Int high_nibbles(Int packed) {
    return low_nibbles(_mm512_srli_epi16(packed, 4));
  }
  TIANQUAN_INLINE_MEMBER static Int subtract(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  TIANQUAN_INLINE_MEMBER static Float to_float(Int v) {
    return __builtin_convertvector(reinterpret_cast<I16>(v), F16);
  }
  TIANQUAN_INLINE_MEMBER static Float load(const float* p) { return _mm512_loadu_ps(p); }
  TIANQUAN_INLINE_MEMBER static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  TIANQUAN_INLINE_MEMBER static Float splat(float x) { return _mm512_set1_ps(x); }
  TIANQUAN_INLINE_MEMBER static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  TIANQUAN_INLINE_MEMBER static Float join(const F8* panels) {
    return _mm512_mask_broadcast_f32x8(_mm512_castps256_ps512(panels[0]), 0xFF00, panels[1]);
  }
};
#endif

}  // namespace tianquan::TIANQUAN_ISA
