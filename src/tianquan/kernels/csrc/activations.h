// Rows of activations as integers: symmetric, one scale per row and group (layout.h).
//
// Ceiling: one read of the row; 0.3 % of a matrix product (benchmarks/kernels.py, "quantize rows").

#pragma once

#include "simd.h"

namespace tianquan::TIANQUAN_ISA {

// With AVX2 the products of nibbles are added in 16 bits, two sums side by side in a lane; VNNI adds in 32
// bits.
#if defined(__AVX512VNNI__)
constexpr bool kSumsInHalves = false;
#else
constexpr bool kSumsInHalves = true;
#endif

struct QuantizedRows {
  uint8_t* codes;   // (T, padded), code + bias
  float* scales;    // (T, groups)
  int32_t* sums;    // (T, groups) sum of the codes of a group
  int32_t* starts;  // (T, groups) what sums with nibbles 0..15 start from: -8 times the codes' sum, as
                    // kSumsInHalves
  int64_t padded;   // bytes of a row: whole groups
  int64_t groups;
  int bias;
  int largest_code;
};

// Two 16-bit integers side by side, as a 32-bit lane of vpmaddubsw's result holds them.
TIANQUAN_INLINE int32_t pack_halves(int32_t low, int32_t high) {
  return static_cast<int32_t>(static_cast<uint32_t>(high) << 16 | (static_cast<uint32_t>(low) & 0xFFFF));
}

// Quantize groups of `group` values (a multiple of 32) of one row; values past `channels` count as zero. A
// group with an infinity or NaN has the scale NaN: what is multiplied with it must not look like numbers.
TIANQUAN_INLINE void quantize_row(const float* x, int64_t channels, const QuantizedRows& rows, int64_t row,
                                  int64_t group) {
  uint8_t* codes = rows.codes + row * rows.padded;
  const float steps = static_cast<float>(rows.largest_code);
  for (int64_t g = 0; g < rows.groups; ++g) {
    const int64_t begin = g * group;
    const float* from = x + begin;
    float padded[kInt8Activations];
    if (begin + group > channels) {
      const int64_t count = max_of(0, channels - begin);
      std::memset(padded, 0, sizeof padded);
      std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(float));
      from = padded;
    }
    F8 largest = splat(0), zeros = splat(0);  // max() passes over NaN
    for (int64_t i = 0; i < group; i += 8) {
      const F8 value = load(from + i);
      largest = max(largest, absolute(value));
      zeros += value * splat(0);
    }
    const float peak = horizontal_max(largest), zero = horizontal_sum(zeros);
    if (!(zero == 0)) {
      std::memset(padded, 0, sizeof padded);
      from = padded;
    }
    const F8 inverse = splat(peak > 1e-30f ? steps / peak : 0.0f);
    I8 total = splat_int(0);
    for (int64_t i = 0; i < group; i += 32) {
      I8 code[4];
      for (int j = 0; j < 4; ++j) {
        code[j] = round_to_int(load(from + i + 8 * j) * inverse);
        total += code[j];
      }
      store_32_bytes(codes + begin + i, code, rows.bias);
    }
    rows.scales[row * rows.groups + g] = (peak > 1e-30f ? peak / steps : 0.0f) + zero;
    total += TIANQUAN_SHUFFLE(total, 1, 0, 3, 2, 5, 4, 7, 6);
    total += TIANQUAN_SHUFFLE(total, 4, 5, 6, 7, 0, 1, 2, 3);
    const int32_t low = total[0], high = total[2];  // channels 0 and 1 of each quad; 2 and 3
    rows.sums[row * rows.groups + g] = low + high;
    rows.starts[row * rows.groups + g] =
        kSumsInHalves ? pack_halves(-kInt4Bias * low, -kInt4Bias * high) : -kInt4Bias * (low + high);
  }
}

}  // namespace tianquan::TIANQUAN_ISA
