// Rows of activations as integers: symmetric, one scale per row and group (layout.h).
//
// Ceiling: one read of the row; 0.3 % of a matrix product (benchmarks/kernels.py, "quantize rows").

#pragma once

#include "simd.h"

namespace tianquan::TIANQUAN_ISA {

struct QuantizedRows {
  uint8_t* codes;  // (T, padded), code + bias
  float* scales;   // (T, groups)
  int32_t* sums;   // (T, groups) sum of the codes of a group
  int32_t*
      starts;  // (T, groups) what sums with nibbles 0..15 start from: -8 times the codes' sum, in two halves
  int64_t padded;  // bytes of a row: whole groups
  int64_t groups;
  int bias;
  int largest_code;
};

// Two 16-bit integers side by side, as a 32-bit lane of vpmaddubsw's result holds them.
TIANQUAN_INLINE int32_t pack_halves(int32_t low, int32_t high) {
  return static_cast<int32_t>(static_cast<uint32_t>(high) << 16 | (static_cast<uint32_t>(low) & 0xFFFF));
}

// Quantize groups of `group` values of one row; values past `channels` count as zero.
TIANQUAN_INLINE void quantize_row(const float* x, int64_t channels, const QuantizedRows& rows, int64_t row,
                                  int64_t group) {
  uint8_t* codes = rows.codes + row * rows.padded;
  const float steps = static_cast<float>(rows.largest_code);
  for (int64_t g = 0; g < rows.groups; ++g) {
    const int64_t begin = g * group;
    const int64_t count = min_of(group, channels - begin);
    F8 largest = splat(0);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) largest = max(largest, absolute(load(x + begin + i)));
    if (i < count) largest = max(largest, absolute(load_some(x + begin + i, count - i)));
    const float peak = horizontal_max(largest);
    const float inverse = peak > 1e-30f ? steps / peak : 0.0f;
    I8 total = splat_int(0);
    for (i = 0; i < group; i += 8) {
      const int64_t left = count - i;
      F8 v = splat(0);
      if (left >= 8) {
        v = load(x + begin + i);
      } else if (left > 0) {
        v = load_some(x + begin + i, left);
      }
      const I8 code = round_to_int(v * splat(inverse));
      total += code;
      store_bytes(codes + begin + i, code, rows.bias);
    }
    rows.scales[row * rows.groups + g] = peak > 1e-30f ? peak / steps : 0.0f;
    const int32_t low = total[0] + total[1] + total[4] + total[5];  // channels 0 and 1 of each quad
    const int32_t high = total[2] + total[3] + total[6] + total[7];
    rows.sums[row * rows.groups + g] = low + high;
    rows.starts[row * rows.groups + g] = pack_halves(-kInt4Bias * low, -kInt4Bias * high);
  }
}

}  // namespace tianquan::TIANQUAN_ISA
