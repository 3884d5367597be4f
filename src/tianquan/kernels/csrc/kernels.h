// The operations each instruction set provides, as a table: `dispatch.cpp` picks one table at start.
//
// Legend: O out channels, I in channels, T rows, H heads, K kv heads, D head dim, S keys, B sequences.

#pragma once

#include "layout.h"
#include "runtime.h"

namespace tianquan {

struct AttentionArguments {
  const float* q;  // (T, H, D), q_stride floats from token to token
  const float* k;  // (S, K, D)
  const float* v;  // (S, K, D)
  int64_t q_stride, k_stride, v_stride;
  float* out;  // (T, H, D), dense
  int32_t num_heads, num_kv_heads, head_dim;
  int32_t causal;
  int64_t num_segments;
  const int32_t* query_offsets;  // (num_segments + 1,)
  const int32_t* key_offsets;    // (num_segments + 1,)
};
static_assert(sizeof(AttentionArguments) == 96);

// Attention over the paged cache of one layer: appends k and v, then attends causally.
struct CachedAttentionArguments {
  const float* q;  // (T, H, D)
  const float* k;  // (T, K, D)
  const float* v;  // (T, K, D)
  int64_t q_stride, k_stride, v_stride;
  float* out;  // (T, H, D), dense
  int32_t num_heads;
  int32_t reserved;
  KeyValueStore store;
  Batch batch;
};
static_assert(sizeof(CachedAttentionArguments) == 152);

struct LayerWeights {
  const float* attention_norm;  // (C,)
  const float* mlp_norm;        // (C,)
  Matrix query_key_value[3];
  Matrix attention_output;
  Matrix gate_up[2];
  Matrix down;
};

struct DecoderArguments {
  const LayerWeights* layers;
  const KeyValueStore* stores;  // one per layer
  int64_t num_layers;
  const float* final_norm;  // (C,)
  Matrix head;
  int32_t num_heads, num_kv_heads, head_dim;
  float rms_norm_eps;
  const float* inverse_frequencies;  // (D / 2,)
  const float* hidden;               // (B, C)
  float* logits;                     // (B, vocab)
  Batch batch;
};

struct QuantizeArguments {
  const float* weight;      // (O, I)
  const float* importance;  // (I,)
  int64_t out, in;
  int32_t bits, group_size, symmetric, num_factors;
  const float* factors;  // fractions of the outermost code to try
  uint8_t* codes;
  uint16_t* scales;
  uint16_t* zero_points;  // null when symmetric
};
static_assert(sizeof(QuantizeArguments) == 80);

struct Kernels {
  const char* isa;
  void (*matmul)(Runtime&, const Matrix* matrices, const Output* outputs, int64_t count, const float* x,
                 int64_t x_stride, int64_t rows);
  void (*embedding)(Runtime&, const Matrix& table, const int64_t* rows, int64_t count, float* out);
  void (*rms_norm)(Runtime&, const float* x, int64_t stride, const float* weight, float eps, float* out,
                   int64_t rows, int64_t channels);
  void (*layer_norm)(Runtime&, const float* x, int64_t stride, const float* weight, const float* bias,
                     float eps, float* out, int64_t rows, int64_t channels);
  void (*rope)(Runtime&, const float* x, int64_t stride, const int32_t* positions,
               const float* inverse_frequencies, float* out, int64_t out_stride, int64_t rows, int64_t heads,
               int64_t head_dim);
  void (*swiglu)(Runtime&, const float* gate, int64_t gate_stride, const float* up, int64_t up_stride,
                 float* out, int64_t rows, int64_t channels);
  void (*attention)(Runtime&, const AttentionArguments&);
  void (*cached_attention)(Runtime&, const CachedAttentionArguments&);
  void (*decode)(Runtime&, const DecoderArguments&);
  void (*quantize)(Runtime&, const QuantizeArguments&);
  double (*fma_gflop_s)(Runtime&);
  double (*read_gb_s)(Runtime&, const void* data, size_t bytes);
};

// The table of this machine for "scalar", "avx2" or "avx512_vnni", or null when the processor lacks the
// instructions.
const Kernels* find_kernels(const char* isa);

}  // namespace tianquan
