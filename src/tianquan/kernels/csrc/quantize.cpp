// The scale search of quantization/quantizers.py, eight out channels at a time and in the same order of
// operations: both give the same bits, which is why this directory is compiled without fused contractions.
//
// Ceiling: arithmetic, about 12 operations per weight and tried scale; 4 billion weights take under a minute
// on two cores (benchmarks/kernels.py, "quantize").
//
// Legend: one group of one panel is x[group_size][8], h[group_size] its importance.

#include "dense.h"
#include "operations.h"
#include "parallel.h"

namespace tianquan::TIANQUAN_ISA {
namespace {

constexpr int kMaxGroupSize = 64;

struct Group {
  alignas(32) float x[kMaxGroupSize][kPanel];
  float h[kMaxGroupSize];
  int size;
};

void load_group(const QuantizeArguments& a, int64_t panel, int64_t g, Group* group) {
  group->size = a.group_size;
  const int64_t first = g * a.group_size;
  for (int64_t i = 0; i < a.group_size; i += 8) {
    const int64_t count = min_of(8, a.in - first - i);
    F8 rows[8];
    for (int64_t r = 0; r < kPanel; ++r) {
      const int64_t channel = panel * kPanel + r;
      const bool inside = channel < a.out && count > 0;
      rows[r] = inside ? load_some(a.weight + channel * a.in + first + i, count) : splat(0);
    }
    transpose(rows, group->x[i], kPanel);
    store(group->h + i, count > 0 ? load_some(a.importance + first + i, count) : splat(0));
  }
}

// Rounding after clipping is the same as before it, and safe for values beyond the range of rounding.
TIANQUAN_INLINE F8 to_code(F8 v, F8 low, F8 high) { return to_float(round_to_int(min(max(v, low), high))); }

void extremes(const Group& group, F8* smallest, F8* largest) {
  *smallest = *largest = load(group.x[0]);
  for (int i = 1; i < group.size; ++i) {
    *smallest = min(*smallest, load(group.x[i]));
    *largest = max(*largest, load(group.x[i]));
  }
}

F8 symmetric_scale(const QuantizeArguments& a, const Group& group, F8 low, F8 high) {
  F8 smallest, largest;
  extremes(group, &smallest, &largest);
  const F8 extreme = select(largest >= -smallest, largest, smallest);
  F8 best_scale = extreme / low, best_gain = splat(0);
  for (int candidate = 0; candidate < a.num_factors; ++candidate) {
    const F8 inverse = (low * splat(a.factors[candidate])) / extreme;
    F8 sum_xq = splat(0), sum_qq = splat(0);
    for (int i = 0; i < group.size; ++i) {
      const F8 x = load(group.x[i]);
      const F8 q = to_code(x * inverse, low, high);
      const F8 hq = splat(group.h[i]) * q;
      sum_xq += hq * x;
      sum_qq += hq * q;
    }
    const F8 gain = (sum_xq * sum_xq) / sum_qq;
    const I8 better = gain > best_gain;
    best_gain = select(better, gain, best_gain);
    best_scale = select(better, sum_xq / sum_qq, best_scale);
  }
  return best_scale;
}

F8 asymmetric_scale(const QuantizeArguments& a, const Group& group, F8* zero_point) {
  const F8 zero = splat(0), steps = splat(15);
  F8 smallest, largest;
  extremes(group, &smallest, &largest);
  const F8 low = min(smallest, zero), high = max(largest, zero);
  F8 best_scale = (high - low) / steps, best_zero = -low / best_scale;
  const F8 start = best_zero;
  F8 best_gain = splat(-__builtin_inff());
  for (int candidate = 0; candidate < a.num_factors; ++candidate) {
    const F8 inverse = (steps * splat(a.factors[candidate])) / (high - low);
    F8 sum_h = zero, sum_q = zero, sum_x = zero, sum_xq = zero, sum_qq = zero;
    for (int i = 0; i < group.size; ++i) {
      const F8 x = load(group.x[i]), h = splat(group.h[i]);
      const F8 q = to_code(x * inverse + start, zero, steps);
      const F8 hq = h * q;
      sum_h += h;
      sum_q += hq;
      sum_x += h * x;
      sum_xq += hq * x;
      sum_qq += hq * q;
    }
    const F8 scale = (sum_h * sum_xq - sum_q * sum_x) / (sum_h * sum_qq - sum_q * sum_q);
    const F8 offset = (sum_x - scale * sum_q) / sum_h;
    const F8 gain = scale * sum_xq + offset * sum_x;
    const F8 candidate_zero = -offset / scale;
    const I8 better = (gain > best_gain) & (absolute(candidate_zero) <= splat(64));
    best_gain = select(better, gain, best_gain);
    best_scale = select(better, scale, best_scale);
    best_zero = select(better, candidate_zero, best_zero);
  }
  *zero_point = select(best_scale == zero, zero, best_zero);
  return best_scale;
}

// Round the group against its stored scale and write the bytes of layout.h.
void write_codes(const QuantizeArguments& a, const Group& group, const uint16_t* scale_bits,
                 const uint16_t* zero_bits, F8 low, F8 high, uint8_t* codes) {
  const F8 scale = load_half(scale_bits);
  const F8 inverse = select(scale == splat(0), splat(0), splat(1) / scale);
  const F8 zero_point = zero_bits ? load_half(zero_bits) : splat(0);
  for (int i = 0; i < group.size; ++i) {
    const F8 x = load(group.x[i]);
    const F8 v = zero_bits ? x * inverse + zero_point : x * inverse;
    const I8 code = round_to_int(min(max(v, low), high));
    for (int lane = 0; lane < kPanel; ++lane) {
      if (a.bits == 8) {
        codes[i / 4 * kUnitBytes + lane * 4 + i % 4] = static_cast<uint8_t>(code[lane]);
        continue;
      }
      const int nibble = code[lane] + (zero_bits ? 0 : kInt4Bias);
      uint8_t* byte = codes + i / kInt4UnitInputs * kUnitBytes + lane * 4 + i % 4;
      *byte = static_cast<uint8_t>(i % 8 < 4 ? nibble : *byte | nibble << 4);
    }
  }
}

}  // namespace

void quantize(Runtime& runtime, const QuantizeArguments& a) {
  const int64_t num_groups = ceil_div(a.in, a.group_size);
  const int64_t group_bytes = static_cast<int64_t>(a.group_size) * a.bits;  // of 8 out channels
  auto body = [&](int64_t panel, int) {
    Group group;
    for (int64_t g = 0; g < num_groups; ++g) {
      load_group(a, panel, g, &group);
      const int64_t at = panel * num_groups + g;
      uint16_t* zero_points = a.symmetric ? nullptr : a.zero_points + at * kPanel;
      F8 low = splat(a.bits == 4 ? -kInt4Bias : -kInt8Max),
         high = splat(a.bits == 4 ? kInt4Bias - 1 : kInt8Max);
      if (a.symmetric) {
        store_half(a.scales + at * kPanel, symmetric_scale(a, group, low, high));
      } else {
        F8 zero_point;
        store_half(a.scales + at * kPanel, asymmetric_scale(a, group, &zero_point));
        store_half(zero_points, zero_point);
        low = splat(0);
        high = splat(15);
      }
      write_codes(a, group, a.scales + at * kPanel, zero_points, low, high, a.codes + at * group_bytes);
    }
  };
  parallel_for(runtime, ceil_div(a.out, kPanel), body);
}

}  // namespace tianquan::TIANQUAN_ISA
