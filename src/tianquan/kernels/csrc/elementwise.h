// Row operations shared by elementwise.cpp and decode.cpp.

#pragma once

#include <cmath>

#include "simd.h"

namespace tianquan::TIANQUAN_ISA {

// Eight values of a row from column c, zero past `channels`.
TIANQUAN_INLINE F8 load_row(const float* x, int64_t c, int64_t channels) {
  return c + 8 <= channels ? load(x + c) : load_some(x + c, channels - c);
}
TIANQUAN_INLINE void store_row(float* x, int64_t c, int64_t channels, F8 v) {
  if (c + 8 <= channels) return store(x + c, v);
  store_some(x + c, v, channels - c);
}

TIANQUAN_INLINE void rms_norm_row(const float* x, const float* weight, float eps, float* out,
                                  int64_t channels) {
  F8 squares = splat(0);
  for (int64_t c = 0; c < channels; c += 8) {
    const F8 v = load_row(x, c, channels);
    squares = fma(v, v, squares);
  }
  const float mean = horizontal_sum(squares) / static_cast<float>(channels);
  const F8 inverse = splat(1.0f / __builtin_sqrtf(mean + eps));
  for (int64_t c = 0; c < channels; c += 8) {
    store_row(out, c, channels, load_row(x, c, channels) * inverse * load_row(weight, c, channels));
  }
}

TIANQUAN_INLINE void layer_norm_row(const float* x, const float* weight, const float* bias, float eps,
                                    float* out, int64_t channels) {
  F8 total = splat(0);
  for (int64_t c = 0; c < channels; c += 8) total += load_row(x, c, channels);
  const float mean = horizontal_sum(total) / static_cast<float>(channels);
  // two passes: the one-pass variance cancels where the mean is large
  F8 squares = splat(0);
  for (int64_t c = 0; c < channels; c += 8) {
    F8 v = load_row(x, c, channels) - splat(mean);
    if (c + 8 > channels) {
      for (int64_t lane = channels - c; lane < 8; ++lane) v[lane] = 0;
    }
    squares = fma(v, v, squares);
  }
  const float variance = horizontal_sum(squares) / static_cast<float>(channels);
  const F8 inverse = splat(1.0f / __builtin_sqrtf(variance + eps));
  for (int64_t c = 0; c < channels; c += 8) {
    const F8 v = (load_row(x, c, channels) - splat(mean)) * inverse;
    store_row(out, c, channels, fma(v, load_row(weight, c, channels), load_row(bias, c, channels)));
  }
}

TIANQUAN_INLINE void swiglu_row(const float* gate, const float* up, float* out, int64_t channels) {
  for (int64_t c = 0; c < channels; c += 8) {
    const F8 g = load_row(gate, c, channels);
    store_row(out, c, channels, g * sigmoid(g) * load_row(up, c, channels));
  }
}

// Cosines and sines of one position; float32 angles, as the definition has them.
TIANQUAN_INLINE void rope_angles(int32_t position, const float* inverse_frequencies, int64_t half,
                                 float* cosines, float* sines) {
  for (int64_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * inverse_frequencies[i];
    cosines[i] = ::cosf(angle);
    sines[i] = ::sinf(angle);
  }
}

// Rotate pairs (i, i + half) of one head; `out` may be `x`.
TIANQUAN_INLINE void rope_head(const float* x, const float* cosines, const float* sines, int64_t half,
                               float* out) {
  for (int64_t i = 0; i < half; i += 8) {
    const F8 low = load_row(x, i, half), high = load_row(x + half, i, half);
    const F8 cosine = load_row(cosines, i, half), sine = load_row(sines, i, half);
    store_row(out, i, half, low * cosine - high * sine);
    store_row(out + half, i, half, high * cosine + low * sine);
  }
}

}  // namespace tianquan::TIANQUAN_ISA
