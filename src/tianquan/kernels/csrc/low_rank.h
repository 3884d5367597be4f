// The factors of an adapter beside a matrix: x w^T + (x down^T) up, in float32 whatever that is stored in.
//
// The rank R is small (8 to 64). x down^T is computed before the product, and `up` applied to each sum as it
// is written, so nothing of the size of the output is stored on the way. Rank 16 beside the int4 language
// model of the official size: 6 % more bytes a token, 0.91 of the tokens a second, 1.10 of the time of a
// prompt (benchmarks/adapters.py).
//
// Legend: O out channels, I in channels, T rows.

#pragma once

#include "dense.h"
#include "operations.h"
#include "parallel.h"

namespace tianquan::TIANQUAN_ISA {

constexpr int kLowRankRows = 4;          // rows of a chunk of x down^T
constexpr int64_t kLowRankChannels = 8;  // and its channels

// R rows of x down^T with channels [first, last).
template <int R>
TIANQUAN_INLINE void multiply_down(const Matrix& down, int64_t first, int64_t last, const float* x,
                                   int64_t x_stride, float* low) {
  for (int64_t channel = first; channel < last; channel += 4) {
    multiply_dense_rows<R>(down, channel, min_of(4, last - channel), x, x_stride, low + channel, down.out);
  }
}

// x down^T (T, R) of each matrix that has factors, null for the others. A row's values do not depend on the
// others.
inline void multiply_all_down(Runtime& runtime, const Matrix* matrices, int64_t count, const float* x,
                              int64_t x_stride, int64_t rows, float** lows) {
  int64_t starts[kMaxGroup + 1] = {}, columns[kMaxGroup] = {}, num_columns = 0;
  for (int64_t i = 0; i < count; ++i) {
    columns[i] = ceil_div(matrices[i].rank, kLowRankChannels);
    num_columns += columns[i];
    starts[i + 1] = starts[i] + round_up(rows * matrices[i].rank, 16);
  }
  if (num_columns == 0) return;
  const size_t bytes = static_cast<size_t>(starts[count]) * sizeof(float);
  float* memory = static_cast<float*>(runtime.shared(Shared::kLowRank, bytes));
  for (int64_t i = 0; i < count; ++i) lows[i] = matrices[i].rank > 0 ? memory + starts[i] : nullptr;
  auto body = [&](int64_t chunk, int) {
    const int64_t row = chunk / num_columns * kLowRankRows;
    int64_t column = chunk % num_columns, i = 0;
    for (; column >= columns[i]; ++i) column -= columns[i];
    const Matrix& m = matrices[i];
    const Matrix down{Format::kFloat32, 0,       m.rank,  m.in,    m.down, nullptr,
                      nullptr,          nullptr, nullptr, nullptr, 0};
    const int64_t first = column * kLowRankChannels, last = min_of(first + kLowRankChannels, m.rank);
    const int64_t end = min_of(row + kLowRankRows, rows);
    if (end - row == kLowRankRows) {
      return multiply_down<kLowRankRows>(down, first, last, x + row * x_stride, x_stride,
                                         lows[i] + row * m.rank);
    }
    for (int64_t r = row; r < end; ++r) {
      multiply_down<1>(down, first, last, x + r * x_stride, x_stride, lows[i] + r * m.rank);
    }
  };
  parallel_for(runtime, ceil_div(rows, kLowRankRows) * num_columns, body);
}

// sum + low up for the channels [channel, channel + count) of one row; `low` has R values. A count of 8 or
// more begins at a panel.
TIANQUAN_INLINE F8 add_up(const Matrix& m, const float* low, int64_t channel, int64_t count, F8 sum) {
  const float* up = m.up + channel / kPanel * m.rank * kPanel + channel % kPanel;
  for (int64_t k = 0; k < m.rank; ++k) {
    const float* values = up + k * kPanel;
    sum = fma(splat(low[k]), count >= kPanel ? load(values) : load_some(values, count), sum);
  }
  return sum;
}

}  // namespace tianquan::TIANQUAN_ISA
