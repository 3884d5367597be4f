// The operations of one instruction set, as `Kernels` lists them (kernels.h explains the arguments).

#pragma once

#include "kernels.h"
#include "simd.h"

namespace tianquan::TIANQUAN_ISA {

constexpr int64_t kMaxGroup = 4;  // matrices that may share an input in one call

void matmul(Runtime& runtime, const Matrix* matrices, const Output* outputs, int64_t count, const float* x,
            int64_t x_stride, int64_t rows);
void embedding(Runtime& runtime, const Matrix& table, const int64_t* rows, int64_t count, float* out);
void rms_norm(Runtime& runtime, const float* x, int64_t stride, const float* weight, float eps, float* out,
              int64_t rows, int64_t channels);
void layer_norm(Runtime& runtime, const float* x, int64_t stride, const float* weight, const float* bias,
                float eps, float* out, int64_t rows, int64_t channels);
void rope(Runtime& runtime, const float* x, int64_t stride, const int32_t* positions,
          const float* inverse_frequencies, float* out, int64_t out_stride, int64_t rows, int64_t heads,
          int64_t head_dim);
void swiglu(Runtime& runtime, const float* gate, int64_t gate_stride, const float* up, int64_t up_stride,
            float* out, int64_t rows, int64_t channels);
void attention(Runtime& runtime, const AttentionArguments& arguments);
void cached_attention(Runtime& runtime, const CachedAttentionArguments& arguments);
void decode(Runtime& runtime, const DecoderArguments& arguments);
void quantize(Runtime& runtime, const QuantizeArguments& arguments);
double fma_gflop_s(Runtime& runtime);
double read_gb_s(Runtime& runtime, const void* data, size_t bytes);

}  // namespace tianquan::TIANQUAN_ISA
