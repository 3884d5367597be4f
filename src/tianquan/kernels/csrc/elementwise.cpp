// Norms, rotary positions, SwiGLU and table look-up, row by row.
//
// Ceiling: one read and one write of the rows; together 2-3 % of a prefill (benchmarks/kernels.py, "rows").
//
// Legend: T rows, C channels, H heads, D head dim.

#include "elementwise.h"

#include "dense.h"
#include "kernels.h"
#include "lowbit.h"
#include "operations.h"
#include "parallel.h"

namespace tianquan::TIANQUAN_ISA {
namespace {

constexpr int64_t kRows = 8;  // of a chunk: a few microseconds of work

template <typename RowBody>
TIANQUAN_INLINE void for_rows(Runtime& runtime, int64_t rows, RowBody& row_body) {
  auto body = [&](int64_t chunk, int thread) {
    const int64_t last = min_of((chunk + 1) * kRows, rows);
    for (int64_t row = chunk * kRows; row < last; ++row) row_body(row, thread);
  };
  parallel_for(runtime, ceil_div(rows, kRows), body);
}

void dense_row(const Matrix& table, int64_t row, float* out) {
  for (int64_t c = 0; c < table.in; c += 8) {
    store_row(out, c, table.in, load_dense(table, row * table.in + c, table.in - c));
  }
}

void lowbit_row(const Matrix& table, int64_t row, float* out) {
  const int64_t panel = row / kPanel, lane = row % kPanel;
  const uint8_t* codes = find_panel(table, panel).codes;
  const int64_t first = panel * ceil_div(table.in, table.group_size) * kPanel + lane;
  const bool is_int4 = table.format == Format::kInt4;
  for (int64_t c = 0; c < table.in; ++c) {
    float code;
    if (is_int4) {
      const uint8_t packed = codes[c / 8 * kUnitBytes + lane * 4 + c % 4];
      code = static_cast<float>(c % 8 < 4 ? packed & 15 : packed >> 4);
    } else {
      code = reinterpret_cast<const int8_t*>(codes)[c / 4 * kUnitBytes + lane * 4 + c % 4];
    }
    const int64_t at = first + c / table.group_size * kPanel;
    float zero_point = is_int4 ? kInt4Bias : 0;
    if (table.zero_points) zero_point = half_value(table.zero_points[at]);
    out[c] = half_value(table.scales[at]) * (code - zero_point);
  }
}

}  // namespace

void embedding(Runtime& runtime, const Matrix& table, const int64_t* rows, int64_t count, float* out) {
  auto body = [&](int64_t i, int) {
    if (is_dense(table.format)) {
      dense_row(table, rows[i], out + i * table.in);
    } else {
      lowbit_row(table, rows[i], out + i * table.in);
    }
  };
  for_rows(runtime, count, body);
}

void rms_norm(Runtime& runtime, const float* x, int64_t stride, const float* weight, float eps, float* out,
              int64_t rows, int64_t channels) {
  auto body = [&](int64_t row, int) {
    rms_norm_row(x + row * stride, weight, eps, out + row * channels, channels);
  };
  for_rows(runtime, rows, body);
}

void layer_norm(Runtime& runtime, const float* x, int64_t stride, const float* weight, const float* bias,
                float eps, float* out, int64_t rows, int64_t channels) {
  auto body = [&](int64_t row, int) {
    layer_norm_row(x + row * stride, weight, bias, eps, out + row * channels, channels);
  };
  for_rows(runtime, rows, body);
}

void rope(Runtime& runtime, const float* x, int64_t stride, const int32_t* positions,
          const float* inverse_frequencies, float* out, int64_t out_stride, int64_t rows, int64_t heads,
          int64_t head_dim) {
  const int64_t half = head_dim / 2;
  auto body = [&](int64_t row, int thread) {
    float* cosines =
        static_cast<float*>(runtime.scratch(thread, static_cast<size_t>(head_dim) * sizeof(float)));
    rope_angles(positions[row], inverse_frequencies, half, cosines, cosines + half);
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = head * head_dim;
      rope_head(x + row * stride + at, cosines, cosines + half, half, out + row * out_stride + at);
    }
  };
  for_rows(runtime, rows, body);
}

void swiglu(Runtime& runtime, const float* gate, int64_t gate_stride, const float* up, int64_t up_stride,
            float* out, int64_t rows, int64_t channels) {
  auto body = [&](int64_t row, int) {
    swiglu_row(gate + row * gate_stride, up + row * up_stride, out + row * channels, channels);
  };
  for_rows(runtime, rows, body);
}

}  // namespace tianquan::TIANQUAN_ISA
