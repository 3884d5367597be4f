// Low-bit products in plain C++, for any processor: the same operations in the same order as lowbit_x86.h.
// Included by lowbit.h. It is the correct path, not a fast one.

#pragma once

#include "lowbit.h"

namespace tianquan::TIANQUAN_ISA {

constexpr int64_t kFewRows = 12;
constexpr int kTileRows = 2;
constexpr int kTilePanels = 3;
constexpr int kTileWidth = kTilePanels * kPanel;  // floats of a row of a tile's sums
constexpr int kStreamRows = 4;

template <Format F, int R>
constexpr int kStreamPanels = R > 1 ? 2 : 1;

template <int P>
TIANQUAN_INLINE void unpack_int4(const Panel& panel, int64_t g, int64_t local_group, int p,
                                 const UnpackedPanels& to) {
  const uint8_t* from = panel.codes + g * kInt4Activations * kPanel / 2;
  const int64_t slot = local_group * P + p;
  int32_t* starts = to.starts + slot * kPanel;
  std::memset(starts, 0, kPanel * sizeof(int32_t));
  for (int unit = 0; unit < 4; ++unit) {
    for (int byte = 0; byte < kUnitBytes; ++byte) {
      const int packed = from[unit * kUnitBytes + byte];
      for (int half = 0; half < 2; ++half) {
        const int code = (half ? packed >> 4 : packed & 15) - kInt4Bias;
        to.codes[((local_group * 8 + 2 * unit + half) * P + p) * kUnitBytes + byte] =
            static_cast<int8_t>(code);
        starts[byte / 4] -= kInt4ActivationBias * code;
      }
    }
  }
  unpack_scales(panel, g, slot, to);
}

template <int P>
TIANQUAN_INLINE void unpack_int8(const Panel& panel, int64_t g, int64_t local_group, int p,
                                 const UnpackedPanels& to) {
  const int8_t* from = reinterpret_cast<const int8_t*>(panel.codes) + g * kInt8Activations * kPanel;
  const int64_t slot = local_group * P + p;
  int32_t* starts = to.starts + slot * kPanel;
  std::memset(starts, 0, kPanel * sizeof(int32_t));
  for (int quad = 0; quad < 16; ++quad) {
    std::memcpy(to.codes + ((local_group * 16 + quad) * P + p) * kUnitBytes, from + quad * kUnitBytes,
                kUnitBytes);
    for (int byte = 0; byte < kUnitBytes; ++byte) {
      starts[byte / 4] -= kInt8ActivationBias * from[quad * kUnitBytes + byte];
    }
  }
  unpack_scales(panel, g, slot, to);
}

template <Format F, int R, int P, bool kHasOffsets>
TIANQUAN_INLINE void multiply_tile(const QuantizedRows& rows, int64_t row, int64_t g0, int64_t num_groups,
                                   const UnpackedPanels& w, float* sums) {
  constexpr int kGroup = F == Format::kInt4 ? kInt4Activations : kInt8Activations;
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int r = 0; r < R; ++r) {
      const uint8_t* a = rows.codes + (row + r) * rows.padded + (g0 + g) * kGroup;
      const float a_scale = rows.scales[(row + r) * rows.groups + g0 + g];
      const float a_sum = a_scale * static_cast<float>(rows.sums[(row + r) * rows.groups + g0 + g]);
      for (int p = 0; p < P; ++p) {
        const int64_t slot = (g * P + p) * kPanel;
        I8 d = load_int(w.starts + slot);
        for (int quad = 0; quad < kGroup / 4; ++quad) {
          const int8_t* codes = w.codes + ((g * kGroup / 4 + quad) * P + p) * kUnitBytes;
          for (int byte = 0; byte < kUnitBytes; ++byte) d[byte / 4] += a[quad * 4 + byte % 4] * codes[byte];
        }
        float* sum = sums + r * kTileWidth + p * kPanel;
        F8 total = fma(splat(a_scale) * load(w.scales + slot), to_float(d), load(sum));
        if constexpr (kHasOffsets) total = fma(splat(a_sum), load(w.offsets + slot), total);
        store(sum, total);
      }
    }
  }
}

template <int R, int P>
TIANQUAN_INLINE void multiply_panels_int4(const Panel* panels, int64_t num_groups, const QuantizedRows& rows,
                                          int64_t row, float* sums) {
  std::memset(sums, 0, R * P * kPanel * sizeof(float));
  for (int64_t i = 0; i < num_groups * P * R; ++i) {
    const int64_t g = i / (P * R), p = i / R % P, r = i % R;
    const Panel& panel = panels[p];
    const uint8_t* codes = panel.codes + g * 4 * kUnitBytes;
    const int64_t at = (row + r) * rows.groups + g;
    const int8_t* a =
        reinterpret_cast<const int8_t*>(rows.codes) + (row + r) * rows.padded + g * kInt4Activations;
    I8 d = splat_int(0);
    for (int byte = 0; byte < 4 * kUnitBytes; ++byte) {
      const int in = byte / kUnitBytes * kInt4UnitInputs + byte % 4;
      const int channel = byte % kUnitBytes / 4;
      d[channel] += ((codes[byte] & 15) - kInt4Bias) * a[in] + ((codes[byte] >> 4) - kInt4Bias) * a[in + 4];
    }
    F8 sum = load(sums + (r * P + p) * kPanel);
    sum = fma(splat(rows.scales[at]) * panel.scale(g), to_float(d), sum);
    if (panel.zero_points) {
      const F8 a_sum = splat(rows.scales[at] * static_cast<float>(rows.sums[at]));
      sum = fma(a_sum, panel.offset(g), sum);
    }
    store(sums + (r * P + p) * kPanel, sum);
  }
}

template <int R, int P>
TIANQUAN_INLINE void multiply_panels_int8(const Panel* panels, int64_t num_groups, const QuantizedRows& rows,
                                          int64_t row, float* sums) {
  std::memset(sums, 0, R * P * kPanel * sizeof(float));
  for (int64_t i = 0; i < num_groups * P * R; ++i) {
    const int64_t g = i / (P * R), p = i / R % P, r = i % R;
    const int8_t* codes = reinterpret_cast<const int8_t*>(panels[p].codes) + g * 16 * kUnitBytes;
    const uint8_t* a = rows.codes + (row + r) * rows.padded + g * kInt8Activations;
    I8 d = splat_int(0);
    for (int byte = 0; byte < 16 * kUnitBytes; ++byte) {
      d[byte % kUnitBytes / 4] += (a[byte / kUnitBytes * 4 + byte % 4] - kInt8ActivationBias) * codes[byte];
    }
    const F8 scale = splat(rows.scales[(row + r) * rows.groups + g]) * panels[p].scale(g);
    float* sum = sums + (r * P + p) * kPanel;
    store(sum, fma(scale, to_float(d), load(sum)));
  }
}

}  // namespace tianquan::TIANQUAN_ISA
