// Keys and values as attention reads them: rows of an array, or rows of the paged cache in its own format.
//
// Legend: K kv heads, D head dim, S tokens of a block of the cache.

#pragma once

#include "elementwise.h"
#include "simd.h"

namespace tianquan::TIANQUAN_ISA {

// The keys (or values) of one sequence and one kv head. Row t lies at base + t * stride, or, in the cache, at
// slot t % block_size of block block_table[t / block_size].
struct RowSource {
  Format format;
  const char* base;
  const float* scales;         // int8 only; one per row, same blocks
  int64_t stride;              // bytes from row to row
  const int32_t* block_table;  // null for an array
  int64_t block_size;
  int64_t block_stride;  // bytes from block to block
  int64_t scale_block_stride;

  TIANQUAN_INLINE_MEMBER const void* row(int64_t t) const {
    if (!block_table) return base + t * stride;
    return base + block_table[t / block_size] * block_stride + t % block_size * stride;
  }
  TIANQUAN_INLINE_MEMBER float scale(int64_t t) const {
    return scales[block_table[t / block_size] * scale_block_stride + t % block_size];
  }
};

TIANQUAN_INLINE int64_t element_bytes(Format format) {
  return format == Format::kFloat32 ? 4 : format == Format::kFloat16 ? 2 : 1;
}

TIANQUAN_INLINE RowSource cache_rows(const KeyValueStore& store, bool values, int64_t kv_head,
                                     const int32_t* block_table) {
  const int64_t row_bytes = store.head_dim * element_bytes(store.format);
  const int64_t head_rows = kv_head * store.block_size;
  const int64_t block_rows = static_cast<int64_t>(store.num_kv_heads) * store.block_size;
  const float* scales = values ? store.value_scales : store.key_scales;
  return {store.format,
          static_cast<const char*>(values ? store.values : store.keys) + head_rows * row_bytes,
          scales ? scales + head_rows : nullptr,
          row_bytes,
          block_table,
          store.block_size,
          block_rows * row_bytes,
          block_rows};
}

// Eight values from column c of a row, zero past D, in float32; int8 rows are not yet scaled.
template <Format F>
TIANQUAN_INLINE F8 load_values(const void* row, int64_t c, int64_t head_dim) {
  const int64_t count = min_of(8, head_dim - c);
  if constexpr (F == Format::kFloat32) {
    return load_row(static_cast<const float*>(row), c, head_dim);
  } else if constexpr (F == Format::kFloat16) {
    const uint16_t* p = static_cast<const uint16_t*>(row) + c;
    if (count == 8) return load_half(p);
    uint16_t padded[8] = {};
    std::memcpy(padded, p, static_cast<size_t>(count) * sizeof(uint16_t));
    return load_half(padded);
  } else {
    const int8_t* p = static_cast<const int8_t*>(row) + c;
    if (count == 8) return load_int8(p);
    int8_t padded[8] = {};
    std::memcpy(padded, p, static_cast<size_t>(count));
    return load_int8(padded);
  }
}

// Write one key or value (D,) of the cache, in the cache's format.
TIANQUAN_INLINE void store_cache_row(const float* x, int64_t head_dim, Format format, void* to,
                                     float* scale) {
  if (format == Format::kFloat32) {
    std::memcpy(to, x, static_cast<size_t>(head_dim) * sizeof(float));
    return;
  }
  if (format == Format::kFloat16) {
    for (int64_t c = 0; c < head_dim; c += 8) {
      uint16_t halves[8];
      store_half(halves, load_row(x, c, head_dim));
      const int64_t count = min_of(8, head_dim - c);
      std::memcpy(static_cast<uint16_t*>(to) + c, halves, static_cast<size_t>(count) * sizeof(uint16_t));
    }
    return;
  }
  F8 largest = splat(0), zeros = splat(0);  // max() passes over NaN
  for (int64_t c = 0; c < head_dim; c += 8) {
    const F8 value = load_row(x, c, head_dim);
    largest = max(largest, absolute(value));
    zeros += value * splat(0);
  }
  const float peak = horizontal_max(largest), zero = horizontal_sum(zeros);
  const float inverse = peak > 1e-30f ? 127.0f / peak : 0.0f;
  *scale = (peak > 1e-30f ? peak / 127.0f : 0.0f) + zero;
  if (!(zero == 0)) {
    std::memset(to, 0, static_cast<size_t>(head_dim));
    return;
  }
  for (int64_t c = 0; c < head_dim; c += 8) {
    int8_t codes[8];
    store_bytes(codes, round_to_int(load_row(x, c, head_dim) * splat(inverse)), 0);
    std::memcpy(static_cast<int8_t*>(to) + c, codes, static_cast<size_t>(min_of(8, head_dim - c)));
  }
}

// Append the key and value of one token and head to the cache.
TIANQUAN_INLINE void append_row(const KeyValueStore& store, int64_t block, int64_t kv_head, int64_t slot,
                                const float* key, const float* value) {
  const int64_t row = (block * store.num_kv_heads + kv_head) * store.block_size + slot;
  const int64_t bytes = row * store.head_dim * element_bytes(store.format);
  store_cache_row(key, store.head_dim, store.format, static_cast<char*>(store.keys) + bytes,
                  store.key_scales ? store.key_scales + row : nullptr);
  store_cache_row(value, store.head_dim, store.format, static_cast<char*>(store.values) + bytes,
                  store.value_scales ? store.value_scales + row : nullptr);
}

}  // namespace tianquan::TIANQUAN_ISA
