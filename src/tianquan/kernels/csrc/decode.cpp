// One decode step of the whole language model: one new token of each sequence in, logits out.
//
// Ceiling: reading every weight once, 1.46 GB at int4 (benchmarks/kernels.py, "decode"). The operations are
// those of a prefill, in the same order; what is saved is everything between them. With one sequence the
// small steps (norm, quantization, rotation) run on the calling thread while the workers spin, which costs
// less than waking them for a microsecond of work.
//
// Legend: B sequences, C hidden, H heads, K kv heads, D head dim, I intermediate.

#include "elementwise.h"
#include "operations.h"
#include "parallel.h"

namespace tianquan::TIANQUAN_ISA {
namespace {

// Activations of one step, all (B, ...).
struct Buffers {
  float* hidden;           // C: the residual stream
  float* normed;           // C
  float* query_key_value;  // H D + 2 K D
  float* attended;         // H D
  float* gate_up;          // 2 I
  float* gated;            // I
  float* cosines;          // D / 2
  float* sines;            // D / 2
};

struct Widths {
  int64_t hidden, query, key_value, packed, intermediate, half;
};

Widths widths_of(const DecoderArguments& a) {
  const int64_t query = static_cast<int64_t>(a.num_heads) * a.head_dim;
  const int64_t key_value = static_cast<int64_t>(a.num_kv_heads) * a.head_dim;
  return {a.head.in, query, key_value, query + 2 * key_value, a.layers[0].down.in, a.head_dim / 2};
}

Buffers carve_buffers(Runtime& runtime, const Widths& w, int64_t rows) {
  const int64_t sizes[] = {w.hidden,           w.hidden,       w.packed, w.query,
                           2 * w.intermediate, w.intermediate, w.half,   w.half};
  int64_t total = 0;
  for (int64_t size : sizes) total += round_up(rows * size, 16);
  float* next =
      static_cast<float*>(runtime.shared(Shared::kHidden, static_cast<size_t>(total) * sizeof(float)));
  float* parts[8];
  for (int i = 0; i < 8; ++i) {
    parts[i] = next;
    next += round_up(rows * sizes[i], 16);
  }
  return {parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6], parts[7]};
}

Output plain(float* data, int64_t stride) { return {data, stride, nullptr, 0, Activation::kNone, 0}; }

void attention_step(Runtime& runtime, const DecoderArguments& a, const Widths& w, const Buffers& x,
                    const LayerWeights& layer, const KeyValueStore& store) {
  const int64_t rows = a.batch.num_sequences;
  rms_norm(runtime, x.hidden, w.hidden, layer.attention_norm, a.rms_norm_eps, x.normed, rows, w.hidden);
  float* key = x.query_key_value + w.query;
  float* value = key + w.key_value;
  const Output projections[3] = {plain(x.query_key_value, w.packed), plain(key, w.packed),
                                 plain(value, w.packed)};
  matmul(runtime, layer.query_key_value, projections, 3, x.normed, w.hidden, rows);
  auto rotate = [&](int64_t row, int) {
    // queries and keys lie next to each other: H + K heads
    float* heads = x.query_key_value + row * w.packed;
    for (int64_t head = 0; head < a.num_heads + a.num_kv_heads; ++head) {
      rope_head(heads + head * a.head_dim, x.cosines + row * w.half, x.sines + row * w.half, w.half,
                heads + head * a.head_dim);
    }
  };
  parallel_for(runtime, rows, rotate);
  const CachedAttentionArguments attend{x.query_key_value, key,         value, w.packed, w.packed, w.packed,
                                        x.attended,        a.num_heads, 0,     store,    a.batch};
  cached_attention(runtime, attend);
  const Output residual{x.hidden, w.hidden, x.hidden, w.hidden, Activation::kNone, 0};
  matmul(runtime, &layer.attention_output, &residual, 1, x.attended, w.query, rows);
}

void mlp_step(Runtime& runtime, const DecoderArguments& a, const Widths& w, const Buffers& x,
              const LayerWeights& layer) {
  const int64_t rows = a.batch.num_sequences;
  rms_norm(runtime, x.hidden, w.hidden, layer.mlp_norm, a.rms_norm_eps, x.normed, rows, w.hidden);
  float* up = x.gate_up + w.intermediate;
  const Output projections[2] = {plain(x.gate_up, 2 * w.intermediate), plain(up, 2 * w.intermediate)};
  matmul(runtime, layer.gate_up, projections, 2, x.normed, w.hidden, rows);
  // 7168 exponentials are worth sharing even for one row
  constexpr int64_t kColumns = 1024;
  const int64_t parts = ceil_div(w.intermediate, kColumns);
  auto gate = [&](int64_t chunk, int) {
    const int64_t row = chunk / parts, first = chunk % parts * kColumns;
    const float* from = x.gate_up + row * 2 * w.intermediate + first;
    swiglu_row(from, from + w.intermediate, x.gated + row * w.intermediate + first,
               min_of(kColumns, w.intermediate - first));
  };
  parallel_for(runtime, rows * parts, gate);
  const Output residual{x.hidden, w.hidden, x.hidden, w.hidden, Activation::kNone, 0};
  matmul(runtime, &layer.down, &residual, 1, x.gated, w.intermediate, rows);
}

}  // namespace

void decode(Runtime& runtime, const DecoderArguments& a) {
  const Widths w = widths_of(a);
  const int64_t rows = a.batch.num_sequences;
  const Buffers x = carve_buffers(runtime, w, rows);
  std::memcpy(x.hidden, a.hidden, static_cast<size_t>(rows * w.hidden) * sizeof(float));
  for (int64_t row = 0; row < rows; ++row) {
    rope_angles(a.batch.num_cached[row], a.inverse_frequencies, w.half, x.cosines + row * w.half,
                x.sines + row * w.half);
  }
  for (int64_t i = 0; i < a.num_layers; ++i) {
    attention_step(runtime, a, w, x, a.layers[i], a.stores[i]);
    mlp_step(runtime, a, w, x, a.layers[i]);
  }
  rms_norm(runtime, x.hidden, w.hidden, a.final_norm, a.rms_norm_eps, x.normed, rows, w.hidden);
  const Output logits = plain(a.logits, a.head.out);
  matmul(runtime, &a.head, &logits, 1, x.normed, w.hidden, rows);
}

}  // namespace tianquan::TIANQUAN_ISA
