// Eight floats at a time, written once for every instruction set.
//
// The types are GCC vector extensions: with AVX2 they are one register, without it the compiler splits them.
// Only what the extensions cannot say (fused multiply-add, half precision, maximum) uses intrinsics.
//
// Everything here and in the kernel files lies in a namespace named by the instruction set. Two builds of
// one inline function under one name would be merged by the linker, and the AVX2 one might then run on a
// processor without AVX2. For the same reason kernel files use no templates of the standard library.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "layout.h"

#if !defined(TIANQUAN_ISA)
#error "TIANQUAN_ISA names the instruction set a kernel file is compiled for"
#endif

namespace tianquan::TIANQUAN_ISA {

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));

#define TIANQUAN_INLINE static inline __attribute__((always_inline))
#define TIANQUAN_INLINE_MEMBER inline __attribute__((always_inline))

TIANQUAN_INLINE F8 splat(float x) { return F8{x, x, x, x, x, x, x, x}; }
TIANQUAN_INLINE I8 splat_int(int32_t x) { return I8{x, x, x, x, x, x, x, x}; }

TIANQUAN_INLINE F8 load(const float* p) {
  F8 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
TIANQUAN_INLINE void store(float* p, F8 v) { std::memcpy(p, &v, sizeof v); }
TIANQUAN_INLINE I8 load_int(const int32_t* p) {
  I8 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The first `count` (1..8) floats; the others are zero.
TIANQUAN_INLINE F8 load_some(const float* p, int64_t count) {
  F8 v = splat(0);
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(float));
  return v;
}
TIANQUAN_INLINE void store_some(float* p, F8 v, int64_t count) {
  std::memcpy(p, &v, static_cast<size_t>(count) * sizeof(float));
}

TIANQUAN_INLINE I8 as_int(F8 v) { return reinterpret_cast<I8>(v); }
TIANQUAN_INLINE F8 as_float(I8 v) { return reinterpret_cast<F8>(v); }
TIANQUAN_INLINE F8 to_float(I8 v) { return __builtin_convertvector(v, F8); }
TIANQUAN_INLINE F8 select(I8 mask, F8 a, F8 b) { return as_float((as_int(a) & mask) | (as_int(b) & ~mask)); }
TIANQUAN_INLINE F8 absolute(F8 v) { return as_float(as_int(v) & splat_int(0x7FFFFFFF)); }

#if defined(__AVX2__)
TIANQUAN_INLINE F8 fma(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }
TIANQUAN_INLINE F8 max(F8 a, F8 b) { return _mm256_max_ps(a, b); }
TIANQUAN_INLINE F8 min(F8 a, F8 b) { return _mm256_min_ps(a, b); }
TIANQUAN_INLINE F8 square_root(F8 a) { return _mm256_sqrt_ps(a); }
TIANQUAN_INLINE F8 load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TIANQUAN_INLINE void store_half(uint16_t* p, F8 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
// Round to the nearest integer, ties to even; |v| < 2^22.
TIANQUAN_INLINE I8 round_to_int(F8 v) { return reinterpret_cast<I8>(_mm256_cvtps_epi32(v)); }
TIANQUAN_INLINE F8 load_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// Eight integers of -128..127 as bytes, plus `bias` modulo 256.
TIANQUAN_INLINE void store_bytes(void* p, I8 v, int bias) {
  const __m256i wide = reinterpret_cast<__m256i>(v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  const __m128i bytes = _mm_add_epi8(_mm_packs_epi16(words, words), _mm_set1_epi8(static_cast<char>(bias)));
  _mm_storel_epi64(static_cast<__m128i*>(p), bytes);
}
// Four times eight of them.
TIANQUAN_INLINE void store_32_bytes(void* p, const I8 v[4], int bias) {
  const __m256i low = _mm256_packs_epi32(reinterpret_cast<__m256i>(v[0]), reinterpret_cast<__m256i>(v[1]));
  const __m256i high = _mm256_packs_epi32(reinterpret_cast<__m256i>(v[2]), reinterpret_cast<__m256i>(v[3]));
  // packs works within halves of a register: quads of bytes are in the order 0 2 4 6 1 3 5 7
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
  _mm256_storeu_si256(static_cast<__m256i*>(p),
                      _mm256_add_epi8(bytes, _mm256_set1_epi8(static_cast<char>(bias))));
}
TIANQUAN_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Into the second-level cache: for what is needed after the first-level cache was filled with something else.
TIANQUAN_INLINE void prefetch_later(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
#else
TIANQUAN_INLINE F8 fma(F8 a, F8 b, F8 c) { return a * b + c; }
TIANQUAN_INLINE F8 max(F8 a, F8 b) { return select(a > b, a, b); }
TIANQUAN_INLINE F8 min(F8 a, F8 b) { return select(a < b, a, b); }
TIANQUAN_INLINE F8 square_root(F8 a) {
  for (int i = 0; i < 8; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
TIANQUAN_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  uint32_t bits = static_cast<uint32_t>(half & 0x7FFF) << 13;
  float value;
  if (bits >= 0x0F800000) {  // infinity and NaN
    bits |= 0x7F800000;
    std::memcpy(&value, &bits, 4);
  } else {  // 2^112 moves the exponent bias from 15 to 127 and makes subnormals normal
    std::memcpy(&value, &bits, 4);
    value *= 0x1p112f;
  }
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}
TIANQUAN_INLINE uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (bits >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // rounds to 65536 or more
  if (bits < 0x38800000) {  // subnormal: the addition rounds at the last place of 2^-24, ties to even
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000));
  }
  return static_cast<uint16_t>(sign | ((bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13));
}
TIANQUAN_INLINE F8 load_half(const uint16_t* p) {
  F8 v;
  for (int i = 0; i < 8; ++i) v[i] = half_to_float(p[i]);
  return v;
}
TIANQUAN_INLINE void store_half(uint16_t* p, F8 v) {
  for (int i = 0; i < 8; ++i) p[i] = float_to_half(v[i]);
}
// Round to the nearest integer, ties to even; |v| < 2^22: the addition leaves no bits for a fraction.
TIANQUAN_INLINE I8 round_to_int(F8 v) { return as_int(v + splat(0x1.8p23f)) - as_int(splat(0x1.8p23f)); }
TIANQUAN_INLINE F8 load_int8(const int8_t* p) {
  F8 v;
  for (int i = 0; i < 8; ++i) v[i] = p[i];
  return v;
}
TIANQUAN_INLINE void store_bytes(void* p, I8 v, int bias) {
  for (int i = 0; i < 8; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(v[i] + bias);
}
TIANQUAN_INLINE void store_32_bytes(void* p, const I8 v[4], int bias) {
  for (int i = 0; i < 4; ++i) store_bytes(static_cast<uint8_t*>(p) + 8 * i, v[i], bias);
}
TIANQUAN_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
#endif

#if defined(__AVX512F__)
typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));

TIANQUAN_INLINE F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
TIANQUAN_INLINE void store(float* p, F16 v) { std::memcpy(p, &v, sizeof v); }
#endif

// For code that is written once over registers of either width.
template <typename V>
TIANQUAN_INLINE V load_as(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename V>
TIANQUAN_INLINE V splat_as(float x) {
  return x - V{};
}

TIANQUAN_INLINE float half_value(uint16_t half) {
  const uint16_t halves[8] = {half};
  return load_half(halves)[0];
}

TIANQUAN_INLINE F8 load_bfloat16(const uint16_t* p) {
  typedef uint16_t H8 __attribute__((vector_size(16)));
  H8 v;
  std::memcpy(&v, p, sizeof v);
  return as_float(__builtin_convertvector(v, I8) << 16);
}

// The lanes of a vector in another order.
#if defined(__clang__)
#define TIANQUAN_SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define TIANQUAN_SHUFFLE(v, ...) __builtin_shuffle(v, I8{__VA_ARGS__})
#endif

TIANQUAN_INLINE float horizontal_sum(F8 v) {
  v += TIANQUAN_SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3);
  v += TIANQUAN_SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5);
  return v[0] + v[1];
}
TIANQUAN_INLINE float horizontal_max(F8 v) {
  v = max(v, TIANQUAN_SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = max(v, TIANQUAN_SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5));
  v = max(v, TIANQUAN_SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6));
  return v[0];
}

// e^x with a relative error below 2e-7; arguments below -87 give 1e-38 rather than 0.
TIANQUAN_INLINE F8 exponential(F8 x) {
  x = min(max(x, splat(-87.0f)), splat(88.0f));
  const I8 n = round_to_int(x * splat(1.44269504f));
  const F8 nf = to_float(n);
  // ln 2 in two parts, so that n * ln 2 is exact to more bits than a float holds
  F8 r = fma(nf, splat(-0.693359375f), x);
  r = fma(nf, splat(2.12194440e-4f), r);
  F8 p = splat(1.9875691500e-4f);  // Cephes expf
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.0f);
  return p * as_float((n + splat_int(127)) << 23);
}

// 2^x for x <= 0 with a relative error below 3e-7; arguments below -126 give 1e-38 rather than 0, NaN stays
// NaN. The softmax of attention uses it because it takes two thirds of the instructions of e^x.
TIANQUAN_INLINE F8 exp2_nonpositive(F8 x) {
  x = max(splat(-126.0f), x);  // in this order: of NaN and a number `max` gives the second
  const I8 n = round_to_int(x);
  const F8 r = x - to_float(n);
  F8 p = splat(1.3276474e-3f);  // relative minimax on [-1/2, 1/2]
  p = fma(p, r, splat(9.6755419e-3f));
  p = fma(p, r, splat(5.5507131e-2f));
  p = fma(p, r, splat(2.4022120e-1f));
  p = fma(p, r, splat(6.9314694e-1f));
  p = fma(p, r, splat(1.0f));
  const F8 result = as_float(as_int(p) + (n << 23));
#if defined(__AVX2__)
  return result;  // the integer of NaN is 1 << 31 there, which adds nothing to the exponent
#else
  return select(x == x, result, x);  // there it has bits of the NaN
#endif
}

TIANQUAN_INLINE F8 sigmoid(F8 x) { return splat(1.0f) / (splat(1.0f) + exponential(-x)); }

// x * Phi(x); erf in two ranges, each a minimax polynomial with an error of about one unit in the last place.
TIANQUAN_INLINE F8 gelu(F8 x) {
  const F8 a = x * splat(0.70710678f);
  const F8 t = absolute(a);
  const F8 s = a * a;
  F8 large = fma(splat(-1.72853470e-5f), t, splat(3.83197126e-4f));
  large = fma(large, s, fma(splat(-3.88396438e-3f), t, splat(2.42546219e-2f)));
  large = fma(large, t, splat(-1.06777877e-1f));
  large = fma(large, t, splat(-6.34846687e-1f));
  large = fma(large, t, splat(-1.28717512e-1f));
  large = splat(1.0f) - exponential(fma(large, t, -t));
  large = as_float(as_int(large) | (as_int(a) & splat_int(INT32_MIN)));
  F8 small = splat(-5.96761703e-4f);
  small = fma(small, s, splat(4.99119423e-3f));
  small = fma(small, s, splat(-2.67681349e-2f));
  small = fma(small, s, splat(1.12819925e-1f));
  small = fma(small, s, splat(-3.76125336e-1f));
  small = fma(small, s, splat(1.28379166e-1f));
  small = fma(small, a, a);
  const F8 erf = select(t > splat(0.927734375f), large, small);
  return splat(0.5f) * x * (splat(1.0f) + erf);
}

// x * (1 + tanh(u)) / 2 = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
TIANQUAN_INLINE F8 gelu_tanh(F8 x) {
  return x * sigmoid(splat(1.59576912f) * fma(splat(0.044715f) * x * x, x, x));
}

TIANQUAN_INLINE F8 activate(F8 x, Activation activation) {
  if (activation == Activation::kGelu) return gelu(x);
  if (activation == Activation::kGeluTanh) return gelu_tanh(x);
  return x;
}

}  // namespace tianquan::TIANQUAN_ISA
