// Attention of one new token over the cache: the query heads of one kv head share every key and value read.
//
// Ceiling: reading the cache once. Keys are taken row by row (dot products), values 16 channels at a time
// over a block of 64 keys, so that the sums stay in registers (benchmarks/kernels.py, "decode attention").
//
// Legend: D head dim, group = query heads of one kv head.

#pragma once

#include "attention_block.h"

namespace tianquan::TIANQUAN_ISA {

TIANQUAN_INLINE size_t decode_scratch_bytes(int64_t group, int64_t head_dim) {
  const int64_t padded = round_up(head_dim, 8);
  return static_cast<size_t>(group * (2 * padded + kKeyBlock + 2)) * sizeof(float);
}

// Where the keys and values of one block lie: found once, because each is visited by every head and column.
struct BlockRows {
  const void* keys[kKeyBlock];
  const void* values[kKeyBlock];
  float key_scales[kKeyBlock];  // int8 only
  float value_scales[kKeyBlock];
};

template <Format F>
TIANQUAN_INLINE void find_rows(const RowSource& keys, const RowSource& values, int64_t first, int64_t count,
                               BlockRows* rows) {
  for (int64_t i = 0; i < count; ++i) {
    rows->keys[i] = keys.row(first + i);
    rows->values[i] = values.row(first + i);
    prefetch(rows->values[i]);
    if constexpr (F == Format::kInt8) {
      rows->key_scales[i] = keys.scale(first + i);
      rows->value_scales[i] = values.scale(first + i);
    }
  }
}

// scores[r][i] of R query rows with `count` keys.
template <Format F, int R>
TIANQUAN_INLINE void score_keys(const BlockRows& rows, int64_t count, const float* q, int64_t padded,
                                int64_t head_dim, float* scores) {
  for (int64_t i = 0; i < count; ++i) {
    F8 sum[R];
    for (int r = 0; r < R; ++r) sum[r] = splat(0);
    for (int64_t c = 0; c < head_dim; c += 8) {
      const F8 values = load_values<F>(rows.keys[i], c, head_dim);
      for (int r = 0; r < R; ++r) sum[r] = fma(load(q + r * padded + c), values, sum[r]);
    }
    const float scale = F == Format::kInt8 ? rows.key_scales[i] : 1.0f;
    for (int r = 0; r < R; ++r) scores[r * kKeyBlock + i] = horizontal_sum(sum[r]) * scale;
  }
}

// out[r][c] += sum over i of weights[r][i] * values[i][c].
template <Format F, int R>
TIANQUAN_INLINE void add_values(const BlockRows& rows, int64_t count, const float* weights, int64_t padded,
                                int64_t head_dim, float* out) {
  for (int64_t c = 0; c < head_dim; c += 8) {
    F8 sum[R];
    for (int r = 0; r < R; ++r) sum[r] = load(out + r * padded + c);
    for (int64_t i = 0; i < count; ++i) {
      const F8 value = load_values<F>(rows.values[i], c, head_dim);
      for (int r = 0; r < R; ++r) sum[r] = fma(splat(weights[r * kKeyBlock + i]), value, sum[r]);
    }
    for (int r = 0; r < R; ++r) store(out + r * padded + c, sum[r]);
  }
}

template <Format F, int R>
TIANQUAN_INLINE void attend_rows(const BlockRows& rows, int64_t count, const float* q, int64_t head_dim,
                                 float* scores, float* maxima, float* totals, float* out) {
  const int64_t padded = round_up(head_dim, 8);
  score_keys<F, R>(rows, count, q, padded, head_dim, scores);
  for (int r = 0; r < R; ++r) {
    update_softmax<kKeyBlock>(scores + r * kKeyBlock, count, maxima + r, totals + r, out + r * padded,
                              padded);
    if constexpr (F == Format::kInt8) {  // the value's scale rides on its weight
      for (int64_t i = 0; i < count; ++i) scores[r * kKeyBlock + i] *= rows.value_scales[i];
    }
  }
  add_values<F, R>(rows, count, scores, padded, head_dim, out);
}

// q and out: `group` rows of D. Each block of keys is read by four rows at a time, from the cache after the
// first.
template <Format F>
void attend_one_token(const float* q, int64_t group, int64_t head_dim, int64_t num_keys,
                      const RowSource& keys, const RowSource& values, float* out, void* memory) {
  const int64_t padded = round_up(head_dim, 8);
  float* scaled = static_cast<float*>(memory);  // [group][padded]
  float* sums = scaled + group * padded;        // [group][padded]
  float* scores = sums + group * padded;        // [group][kKeyBlock]
  float* maxima = scores + group * kKeyBlock;   // [group]
  float* totals = maxima + group;               // [group]
  const F8 scale = splat(kLog2E / __builtin_sqrtf(static_cast<float>(head_dim)));
  for (int64_t r = 0; r < group; ++r) {
    for (int64_t c = 0; c < padded; c += 8) {
      store(scaled + r * padded + c, load_row(q + r * head_dim, c, head_dim) * scale);
      store(sums + r * padded + c, splat(0));
    }
    maxima[r] = kHidden;
    totals[r] = 0;
  }
  for (int64_t key = 0; key < num_keys; key += kKeyBlock) {
    const int64_t count = min_of(kKeyBlock, num_keys - key);
    BlockRows rows;
    find_rows<F>(keys, values, key, count, &rows);
    int64_t r = 0;
    for (; r + 4 <= group; r += 4) {
      attend_rows<F, 4>(rows, count, scaled + r * padded, head_dim, scores + r * kKeyBlock, maxima + r,
                        totals + r, sums + r * padded);
    }
    for (; r < group; ++r) {
      attend_rows<F, 1>(rows, count, scaled + r * padded, head_dim, scores + r * kKeyBlock, maxima + r,
                        totals + r, sums + r * padded);
    }
  }
  for (int64_t r = 0; r < group; ++r) {
    const F8 inverse = inverse_total(maxima[r], totals[r]);
    for (int64_t c = 0; c < head_dim; c += 8) {
      store_row(out + r * head_dim, c, head_dim, load(sums + r * padded + c) * inverse);
    }
  }
}

}  // namespace tianquan::TIANQUAN_ISA
