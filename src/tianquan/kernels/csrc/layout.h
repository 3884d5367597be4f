// The bytes of weights, activations and the key-value cache: everything two files must agree on.
//
// Legend: O out channels, I in channels, P panels of 8 out channels, G groups of in channels, T rows.
//
// int4, one unit of 32 bytes = 8 out x 8 in channels (one register of packed nibbles):
//
//     byte          0    1    2    3  |  4    5    6    7  | ... | 28   29   30   31
//     out channel   0    0    0    0  |  1    1    1    1  | ... |  7    7    7    7
//     low nibble    in 0    1    2    3  (so one AND gives the 8 x 4 operand of a byte multiply)
//     high nibble   in 4    5    6    7  (and one shift the next)
//
// int8, one unit of 32 bytes = 8 out x 4 in channels: the same bytes without a high nibble.
// Units of a panel follow each other along I; panels follow each other along O. A scale (float16) stands for
// one out channel and one group: scales[P][G][8], and so do zero points. `quantization/format.py` is the
// definition; tests/quantization/test_format.py compares the two.
//
// Activations of a low-bit product are integers per row and group, stored as unsigned bytes code + bias, so
// that vpmaddubsw takes activations x weights and adds pairs into 16 bits:
//     int4 weights   groups of 32, codes -127..127, bias 128: a lane's 16 products of 255 * 8 fit 16 bits,
//                    so a group is widened to 32 bits once
//     int8 weights   groups of 64, codes -63..63, bias 64: 4 products of 127 * 64 fit, so every second
//                    is widened
// The second line is the compromise of an instruction set without a 32-bit byte product. Measured on one core
// (float32 peak 118 GFLOP/s) and on normal values, for the whole product:
//     weights -127..127, activations 16 bits, vpmaddwd      148 GOP/s   error 0.6 %
//     weights -64..64, activations -127..127                209 GOP/s   error 1.3 %
//     weights -64..64, activations -63..63                  250 GOP/s   error 1.6 %   (int4: 280 and 8.2 %)

#pragma once

#include <cstddef>
#include <cstdint>

namespace tianquan {

constexpr int kPanel = 8;             // out channels of a panel
constexpr int kUnitBytes = 32;        // bytes of a unit, one 256-bit register
constexpr int kInt4UnitInputs = 8;    // in channels of an int4 unit
constexpr int kInt8UnitInputs = 4;    // in channels of an int8 unit
constexpr int kInt4Bias = 8;          // a symmetric nibble is the code + 8
constexpr int kInt8Max = 64;          // largest magnitude of an int8 code
constexpr int kInt4Activations = 32;  // in channels of an activation group for int4 weights
constexpr int kInt8Activations = 64;  // and for int8 weights
constexpr int kInt4ActivationBias = 128;
constexpr int kInt8ActivationBias = 64;
constexpr int kInt4ActivationMax = 127;
constexpr int kInt8ActivationMax = 63;

static_assert(kPanel * 4 == kUnitBytes, "a unit holds 4 bytes of each out channel");
static_assert(kInt4UnitInputs * kPanel / 2 == kUnitBytes && kInt8UnitInputs * kPanel == kUnitBytes);
static_assert((kInt4ActivationBias + kInt4ActivationMax) * kInt4Bias * kInt4Activations / 2 <= INT16_MAX);
static_assert((kInt8ActivationBias + kInt8ActivationMax) * kInt8Max * 4 <= INT16_MAX);

enum class Format : int32_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kInt4 = 3, kInt8 = 4 };
enum class Activation : int32_t { kNone = 0, kGelu = 1, kGeluTanh = 2 };

// One weight (O, I) as Python hands it over; `kernels/structs.py` mirrors this struct field by field.
struct Matrix {
  Format format;
  int32_t group_size;           // in channels of a scale; 0 for dense formats
  int64_t out;                  // O
  int64_t in;                   // I
  const void* values;           // codes, or row-major dense values
  const uint16_t* scales;       // (P, G, 8) float16; null for dense formats
  const uint16_t* zero_points;  // (P, G, 8) float16; null when symmetric or dense
  const float* bias;            // (O,) or null
  const float* down;            // (R, I) of an adapter, or null: x w^T + (x down^T) up
  const float* up;              // (P, R, 8): panels of out channels, the last one padded
  int64_t rank;                 // R; 0 without an adapter
};
static_assert(sizeof(Matrix) == 80 && offsetof(Matrix, values) == 24 && offsetof(Matrix, bias) == 48);

// Where the product of one matrix goes: out = activation(x w^T + bias) + residual.
struct Output {
  float* data;
  int64_t stride;         // floats from row to row
  const float* residual;  // or null; may be `data` itself
  int64_t residual_stride;
  Activation activation;
  int32_t reserved;
};
static_assert(sizeof(Output) == 40);

// The paged cache of one layer: keys and values (N, K, S, D) and, for int8, a scale for each (N, K, S).
struct KeyValueStore {
  Format format;  // float32, float16 or int8
  int32_t num_kv_heads;
  int32_t block_size;
  int32_t head_dim;
  void* keys;
  void* values;
  float* key_scales;
  float* value_scales;
};
static_assert(sizeof(KeyValueStore) == 48);

// Rows query_offsets[b] : query_offsets[b + 1] continue sequence b after num_cached[b] tokens.
struct Batch {
  int64_t num_sequences;
  const int32_t* query_offsets;
  const int32_t* num_cached;
  const int32_t* block_tables;  // (B, table_stride)
  int64_t table_stride;
};
static_assert(sizeof(Batch) == 40);

static inline bool is_dense(Format format) { return format != Format::kInt4 && format != Format::kInt8; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace tianquan
