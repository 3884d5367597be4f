// Attention of many query rows of one kv head over blocks of keys, with a running softmax.
//
// For each block of keys: scores = q k^T (q scaled by log2(e) / sqrt(D)), then with m the largest score so
// far and l the sum of weights
//     m' = max(m, max scores)    w = 2^(scores - m')    c = 2^(m - m')
//     l' = c l + sum w           o' = c o + w v          result o / l
// The (S, S) matrix never exists: a few rows of scores at a time, in the first-level cache.
//
// Ceiling: the float32 tile of dense.h for both products, plus one exponential (about 15 instructions for 8)
// per score: 85 % of the float32 peak at D = 72 (benchmarks/kernels.py, "attention").
//
// Legend: D head dim, group = query heads of one kv head, rows = tokens x group.

#pragma once

#include "dense.h"
#include "key_value.h"

namespace tianquan::TIANQUAN_ISA {

constexpr int64_t kQueryRows = 512;  // rows of a chunk, which share the packed keys and values
constexpr int64_t kKeyBlock = 64;
// Where every row sees every key, keys are many and a block still fits the second-level cache: 5 % faster at
// D = 72. Under a causal mask, where more of a large block is computed in vain, it is 11 % slower.
constexpr int64_t kLargeKeyBlock = 128;
constexpr int64_t kLargeBlockMaxDim = 128;
constexpr int64_t kLargeBlockMinKeys = 512;
constexpr float kLog2E = 1.44269504f;  // turns the softmax's e^x into 2^x
constexpr float kHidden = -1e30f;      // score of a key that a row does not see

// Rows whose scores exist at one time: a multiple of the heights of both tiles.
template <int64_t kKeys>
constexpr int64_t kScoreRows = kKeys == kKeyBlock ? 24 : 48;

struct AttentionScratch {
  float* q;       // [rows][Dp], scaled
  float* out;     // [rows][Dp]
  float* keys;    // [key panel][Dp][16]
  float* values;  // [kKeys][Dp]
  float* rows;    // [8][Dp] keys before they are transposed
  float* scores;  // [kScoreRows][kKeys]
  float* maxima;  // [rows]
  float* totals;  // [rows]
  int64_t padded;
};

template <int64_t kKeys>
TIANQUAN_INLINE size_t attention_scratch_bytes(int64_t rows, int64_t head_dim) {
  const int64_t padded = round_up(head_dim, 8);
  const int64_t floats =
      padded * (2 * rows + 2 * kKeys + 8) + kScoreRows<kKeys> * kKeys + 2 * round_up(rows, 8);
  return static_cast<size_t>(floats) * sizeof(float);
}

template <int64_t kKeys>
TIANQUAN_INLINE AttentionScratch carve_scratch(void* memory, int64_t rows, int64_t head_dim) {
  AttentionScratch s;
  s.padded = round_up(head_dim, 8);
  s.q = static_cast<float*>(memory);
  s.out = s.q + rows * s.padded;
  s.keys = s.out + rows * s.padded;
  s.values = s.keys + kKeys * s.padded;
  s.rows = s.values + kKeys * s.padded;
  s.scores = s.rows + 8 * s.padded;
  s.maxima = s.scores + kScoreRows<kKeys> * kKeys;
  s.totals = s.maxima + round_up(rows, 8);
  return s;
}

template <Format F>
TIANQUAN_INLINE void load_block_row(const RowSource& source, int64_t t, int64_t head_dim, float* to) {
  const void* row = source.row(t);
  const F8 scale = splat(F == Format::kInt8 ? source.scale(t) : 1.0f);
  for (int64_t c = 0; c < head_dim; c += 8) {
    const F8 v = load_values<F>(row, c, head_dim);
    store(to + c, F == Format::kInt8 ? v * scale : v);
  }
}

// Keys [first, first + count) transposed into panels of 16, values as rows; both zero past `count`.
template <Format F, int64_t kKeys>
void pack_key_block(const RowSource& keys, const RowSource& values, int64_t first, int64_t count,
                    int64_t head_dim, const AttentionScratch& s) {
  for (int64_t t = 0; t < kKeys; ++t) {
    float* value = s.values + t * s.padded;
    if (t < count) {
      load_block_row<F>(values, first + t, head_dim, value);
    } else {
      std::memset(value, 0, static_cast<size_t>(s.padded) * sizeof(float));
    }
  }
  for (int64_t t = 0; t < kKeys; t += 8) {
    for (int64_t i = 0; i < 8; ++i) {
      float* row = s.rows + i * s.padded;
      if (t + i < count) {
        load_block_row<F>(keys, first + t + i, head_dim, row);
      } else {
        std::memset(row, 0, static_cast<size_t>(s.padded) * sizeof(float));
      }
    }
    float* panel = s.keys + t / kDenseWidth * s.padded * kDenseWidth + t % kDenseWidth;
    for (int64_t c = 0; c < s.padded; c += 8) {
      F8 block[8];
      for (int64_t i = 0; i < 8; ++i) block[i] = load(s.rows + i * s.padded + c);
      transpose(block, panel + c * kDenseWidth, kDenseWidth);
    }
  }
}

// One row's step of the running softmax over a block of scores; `visible` keys of the block count.
template <int64_t kKeys>
TIANQUAN_INLINE void update_softmax(float* scores, int64_t visible, float* maximum, float* total, float* out,
                                    int64_t padded) {
  for (int64_t i = max_of(0, visible); i < kKeys; ++i) scores[i] = kHidden;
  F8 largest = load(scores);
  for (int64_t i = 8; i < kKeys; i += 8) largest = max(largest, load(scores + i));
  const float peak = horizontal_max(largest);
  const float next = peak > *maximum ? peak : *maximum;
  F8 sum = splat(0);
  for (int64_t i = 0; i < kKeys; i += 8) {
    const F8 weight = exp2_nonpositive(load(scores + i) - splat(next));
    store(scores + i, weight);
    sum += weight;
  }
  float kept = 1.0f;
  if (next > *maximum) {
    kept = exp2_nonpositive(splat(*maximum - next))[0];
    for (int64_t c = 0; c < padded; c += 8) store(out + c, load(out + c) * splat(kept));
  }
  *total = *total * kept + horizontal_sum(sum);
  *maximum = next;
}

// What a row's sums are multiplied by at the end. No score above that of a hidden key: all were -infinity,
// and the softmax has no value.
TIANQUAN_INLINE F8 inverse_total(float maximum, float total) {
  return splat(maximum > kHidden ? 1.0f / total : __builtin_nanf(""));
}

// One block of keys for rows [row, row + rows), rows <= kScoreRows<kKeys>. `visible(row)` is how many keys of
// the block a row sees.
template <int64_t kKeys, typename Visible>
TIANQUAN_INLINE void attend_block(const AttentionScratch& s, int64_t row, int64_t rows, int64_t head_dim,
                                  int64_t count, const Visible& visible) {
  const int64_t padded = s.padded;
  const int64_t panels = ceil_div(count, kDenseWidth);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const float* keys = s.keys + panel * padded * kDenseWidth;
    for (int64_t r = 0; r < rows; r += kDenseRows) {
      dense_rows<2>(min_of(kDenseRows, rows - r), s.q + (row + r) * padded, padded, keys, kDenseWidth,
                    head_dim, s.scores + r * kKeys + panel * kDenseWidth, kKeys, false);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    update_softmax<kKeys>(s.scores + r * kKeys, min_of(count, visible(row + r)), s.maxima + row + r,
                          s.totals + row + r, s.out + (row + r) * padded, padded);
  }
  const float* weights = s.scores;
  float* out = s.out + row * padded;
  if (kPrefersWide &&
      padded % kWideWidth == 0) {  // D = 72 is three wide tiles, or four of the others and half of one
    for (int64_t c = 0; c < padded; c += kWideWidth) {
      for (int64_t r = 0; r < rows; r += kWideRows) {
        dense_rows<3, kWideRows>(min_of(kWideRows, rows - r), weights + r * kKeys, kKeys, s.values + c,
                                 padded, count, out + r * padded + c, padded, true);
      }
    }
    return;
  }
  for (int64_t c = 0; c < padded; c += kDenseWidth) {
    for (int64_t r = 0; r < rows; r += kDenseRows) {
      const int64_t height = min_of(kDenseRows, rows - r);
      float* to = out + r * padded + c;
      if (padded - c >= kDenseWidth) {
        dense_rows<2>(height, weights + r * kKeys, kKeys, s.values + c, padded, count, to, padded, true);
      } else {
        dense_rows<1>(height, weights + r * kKeys, kKeys, s.values + c, padded, count, to, padded, true);
      }
    }
  }
}

}  // namespace tianquan::TIANQUAN_ISA
