// Attention within packed segments, and over the paged cache: how the work is cut and where rows come from.
//
// Many rows go through attention_block.h, few rows (decode) through attention_decode.h.
//
// Legend: T rows, H heads, K kv heads, D head dim, S keys, B sequences, group = H / K.

#include <cmath>

#include "attention_block.h"
#include "attention_decode.h"
#include "operations.h"
#include "parallel.h"

namespace tianquan::TIANQUAN_ISA {
namespace {

// Tokens [first, last) of one segment and the query heads of one kv head.
struct QueryChunk {
  const float* q;  // first row of the segment, first head of the group
  int64_t stride;
  float* out;
  int64_t out_stride;
  int64_t first, last;
  int64_t group;
  int64_t head_dim;
  int64_t num_keys;
  int64_t causal_shift;  // where `causal`, token t sees keys up to t + causal_shift
  bool causal;
};

template <Format F, int64_t kKeys>
void attend_chunk(const QueryChunk& c, const RowSource& keys, const RowSource& values, void* memory) {
  const int64_t rows = (c.last - c.first) * c.group;
  const AttentionScratch s = carve_scratch<kKeys>(memory, rows, c.head_dim);
  const F8 scale = splat(kLog2E / __builtin_sqrtf(static_cast<float>(c.head_dim)));
  for (int64_t row = 0; row < rows; ++row) {
    const float* q = c.q + (c.first + row / c.group) * c.stride + row % c.group * c.head_dim;
    for (int64_t i = 0; i < s.padded; i += 8)
      store(s.q + row * s.padded + i, load_row(q, i, c.head_dim) * scale);
    s.maxima[row] = kHidden;
    s.totals[row] = 0;
  }
  std::memset(s.out, 0, static_cast<size_t>(rows * s.padded) * sizeof(float));
  const int64_t last_key = c.causal ? min_of(c.num_keys, c.last + c.causal_shift) : c.num_keys;
  for (int64_t key = 0; key < last_key; key += kKeys) {
    const int64_t count = min_of(kKeys, last_key - key);
    pack_key_block<F, kKeys>(keys, values, key, count, c.head_dim, s);
    const auto visible = [&](int64_t row) {
      return c.causal ? c.first + row / c.group + c.causal_shift + 1 - key : kKeys;
    };
    for (int64_t row = 0; row < rows; row += kScoreRows<kKeys>) {
      const int64_t block_rows = min_of(kScoreRows<kKeys>, rows - row);
      if (visible(row + block_rows - 1) <= 0) continue;  // none of these rows sees the block
      attend_block<kKeys>(s, row, block_rows, c.head_dim, count, visible);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    float* out = c.out + (c.first + row / c.group) * c.out_stride + row % c.group * c.head_dim;
    const F8 inverse = inverse_total(s.maxima[row], s.totals[row]);
    for (int64_t i = 0; i < c.head_dim; i += 8) {
      store_row(out, i, c.head_dim, load(s.out + row * s.padded + i) * inverse);
    }
  }
}

int64_t chunk_tokens(int64_t group) { return max_of(1, kQueryRows / group); }

int64_t count_chunks(const int32_t* offsets, int64_t segments, int64_t tokens) {
  int64_t total = 0;
  for (int64_t b = 0; b < segments; ++b) total += ceil_div(offsets[b + 1] - offsets[b], tokens);
  return total;
}

// The segment of chunk number `chunk`, which becomes the number within the segment.
int64_t find_segment(const int32_t* offsets, int64_t tokens, int64_t* chunk) {
  int64_t b = 0;
  for (;; ++b) {
    const int64_t chunks = ceil_div(offsets[b + 1] - offsets[b], tokens);
    if (*chunk < chunks) return b;
    *chunk -= chunks;
  }
}

void append_tokens(Runtime& runtime, const CachedAttentionArguments& a) {
  const int64_t head_dim = a.store.head_dim;
  auto body = [&](int64_t b, int) {
    for (int64_t row = a.batch.query_offsets[b]; row < a.batch.query_offsets[b + 1]; ++row) {
      const int64_t token = a.batch.num_cached[b] + row - a.batch.query_offsets[b];
      const int64_t block = a.batch.block_tables[b * a.batch.table_stride + token / a.store.block_size];
      for (int64_t head = 0; head < a.store.num_kv_heads; ++head) {
        append_row(a.store, block, head, token % a.store.block_size, a.k + row * a.k_stride + head * head_dim,
                   a.v + row * a.v_stride + head * head_dim);
      }
    }
  };
  parallel_for(runtime, a.batch.num_sequences, body);
}

template <Format F>
void attend_cached(Runtime& runtime, const CachedAttentionArguments& a) {
  const int64_t group = a.num_heads / a.store.num_kv_heads;
  const int64_t head_dim = a.store.head_dim;
  const int64_t tokens = chunk_tokens(group);
  const int64_t chunks = count_chunks(a.batch.query_offsets, a.batch.num_sequences, tokens);
  const int64_t heads = a.store.num_kv_heads;
  auto body = [&](int64_t job, int thread) {
    int64_t chunk = chunks - 1 - job / heads;  // late tokens see most keys: the longest chunks go first
    const int64_t head = job % heads;
    const int64_t b = find_segment(a.batch.query_offsets, tokens, &chunk);
    const int64_t first_row = a.batch.query_offsets[b];
    const int64_t rows = a.batch.query_offsets[b + 1] - first_row;
    const int32_t* table = a.batch.block_tables + b * a.batch.table_stride;
    const RowSource keys = cache_rows(a.store, false, head, table);
    const RowSource values = cache_rows(a.store, true, head, table);
    const int64_t num_keys = a.batch.num_cached[b] + rows;
    const float* q = a.q + first_row * a.q_stride + head * group * head_dim;
    float* out = a.out + (first_row * a.num_heads + head * group) * head_dim;
    if (rows == 1) {
      void* memory = runtime.scratch(thread, decode_scratch_bytes(group, head_dim));
      return attend_one_token<F>(q, group, head_dim, num_keys, keys, values, out, memory);
    }
    const QueryChunk c{q,
                       a.q_stride,
                       out,
                       a.num_heads * head_dim,
                       chunk * tokens,
                       min_of(rows, (chunk + 1) * tokens),
                       group,
                       head_dim,
                       num_keys,
                       a.batch.num_cached[b],
                       true};
    const size_t bytes = attention_scratch_bytes<kKeyBlock>((c.last - c.first) * group, head_dim);
    attend_chunk<F, kKeyBlock>(c, keys, values, runtime.scratch(thread, bytes));
  };
  parallel_for(runtime, chunks * heads, body);
}

RowSource array_rows(const float* data, int64_t stride, int64_t first, int64_t head, int64_t head_dim) {
  const float* base = data + first * stride + head * head_dim;
  return {Format::kFloat32, reinterpret_cast<const char*>(base), nullptr, stride * 4, nullptr, 0, 0, 0};
}

}  // namespace

void attention(Runtime& runtime, const AttentionArguments& a) {
  const int64_t group = a.num_heads / a.num_kv_heads;
  const int64_t tokens = chunk_tokens(group);
  const int64_t chunks = count_chunks(a.query_offsets, a.num_segments, tokens);
  auto body = [&](int64_t job, int thread) {
    int64_t chunk = chunks - 1 - job % chunks;  // all chunks of a head together: its keys stay in the cache
    const int64_t head = job / chunks;
    const int64_t b = find_segment(a.query_offsets, tokens, &chunk);
    const int64_t first_row = a.query_offsets[b], rows = a.query_offsets[b + 1] - first_row;
    const int64_t first_key = a.key_offsets[b], num_keys = a.key_offsets[b + 1] - first_key;
    const int64_t offset = head * group * a.head_dim;
    const int64_t out_stride = static_cast<int64_t>(a.num_heads) * a.head_dim;
    const QueryChunk c{a.q + first_row * a.q_stride + offset,
                       a.q_stride,
                       a.out + first_row * out_stride + offset,
                       out_stride,
                       chunk * tokens,
                       min_of(rows, (chunk + 1) * tokens),
                       group,
                       a.head_dim,
                       num_keys,
                       num_keys - rows,
                       a.causal != 0};
    const auto keys = array_rows(a.k, a.k_stride, first_key, head, a.head_dim);
    const auto values = array_rows(a.v, a.v_stride, first_key, head, a.head_dim);
    const int64_t chunk_rows = (c.last - c.first) * group;
    if (a.causal || a.head_dim > kLargeBlockMaxDim || num_keys < kLargeBlockMinKeys) {
      const size_t bytes = attention_scratch_bytes<kKeyBlock>(chunk_rows, a.head_dim);
      return attend_chunk<Format::kFloat32, kKeyBlock>(c, keys, values, runtime.scratch(thread, bytes));
    }
    const size_t bytes = attention_scratch_bytes<kLargeKeyBlock>(chunk_rows, a.head_dim);
    attend_chunk<Format::kFloat32, kLargeKeyBlock>(c, keys, values, runtime.scratch(thread, bytes));
  };
  parallel_for(runtime, chunks * a.num_kv_heads, body);
}

void cached_attention(Runtime& runtime, const CachedAttentionArguments& a) {
  append_tokens(runtime, a);
  if (a.store.format == Format::kFloat32) return attend_cached<Format::kFloat32>(runtime, a);
  if (a.store.format == Format::kFloat16) return attend_cached<Format::kFloat16>(runtime, a);
  attend_cached<Format::kInt8>(runtime, a);
}

}  // namespace tianquan::TIANQUAN_ISA
