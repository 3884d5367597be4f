// Low-bit products: the parts that depend on the instruction set are in lowbit_x86.h and lowbit_scalar.h.
//
//     y[t, o] = sum over groups g of  a_scale[t, g] * w_scale[o, g] * D  (+ a term for zero points)
//     D       = sum over i in g of    a[t, i] * (nibble[o, i] - 8)        exact in integers
//     zero    = a_scale[t, g] * A * (-w_scale[o, g] * (zero_point[o, g] - 8)),   A = sum of a[t, i]
//
// Every path adds the groups in the same order with the same float operations, so one row gives the same
// bits alone, in a batch, and on any number of threads.
//
// Legend: R rows of a tile, P panels of a tile; a "group" here is one of activations (32 or 64 channels).

#pragma once

#include "activations.h"
#include "simd.h"

namespace tianquan::TIANQUAN_ISA {

constexpr int64_t kLowBitDepth = 512;  // in channels unpacked at a time

// Unpacked weights of P panels and some groups, small enough for the first-level cache.
struct UnpackedPanels {
  int8_t* codes;    // [group][quad of 4 in channels][P][8 out][4 in], nibble - 8 or int8 code
  float* scales;    // [group][P][8]
  int32_t* starts;  // [group][P][8]: what sums start from, -bias * sum of codes
  float* offsets;   // [group][P][8]: -scale * (zero_point - 8); unused when symmetric
};

// One panel of a matrix: where its codes begin, and its scales and zero points by activation group.
struct Panel {
  const uint8_t* codes;
  const uint16_t* scales;
  const uint16_t* zero_points;  // null when symmetric
  int shift;                    // 1 where two activation groups of 32 share a scale

  TIANQUAN_INLINE_MEMBER F8 scale(int64_t g) const { return load_half(scales + (g >> shift) * kPanel); }
  // What a sum of activations is multiplied by; the codes are taken as nibble - 8.
  TIANQUAN_INLINE_MEMBER F8 offset(int64_t g) const {
    return -scale(g) * (load_half(zero_points + (g >> shift) * kPanel) - splat(kInt4Bias));
  }
};

TIANQUAN_INLINE Panel find_panel(const Matrix& m, int64_t panel) {
  const int64_t groups = ceil_div(m.in, m.group_size);
  const int64_t bytes = groups * m.group_size * kPanel / (m.format == Format::kInt4 ? 2 : 1);
  const int64_t first = panel * groups * kPanel;
  const bool is_shared = m.format == Format::kInt4 && m.group_size == 2 * kInt4Activations;
  return {static_cast<const uint8_t*>(m.values) + panel * bytes, m.scales + first,
          m.zero_points ? m.zero_points + first : nullptr, is_shared ? 1 : 0};
}

TIANQUAN_INLINE void unpack_scales(const Panel& panel, int64_t g, int64_t slot, const UnpackedPanels& to) {
  store(to.scales + slot * kPanel, panel.scale(g));
  if (panel.zero_points) store(to.offsets + slot * kPanel, panel.offset(g));
}

}  // namespace tianquan::TIANQUAN_ISA

#if defined(__AVX2__)
#include "lowbit_x86.h"
#else
#include "lowbit_scalar.h"
#endif
