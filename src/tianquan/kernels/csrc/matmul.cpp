// Matrix products: which path a product takes, how it is cut into chunks, and what happens to the sums.
//
// Few rows: the weight streams from memory once and every row uses it on the way (limited by read bandwidth).
// Many rows: a block of 3 panels (or 16 dense channels) and a part of the depth is unpacked into the
// first-level cache and run over a block of rows (limited by arithmetic). Ceilings in tile_avx2.h,
// tile_vnni.h, dense.h.
//
// Legend: O out channels, I in channels, T rows.

#include "dense.h"
#include "low_rank.h"
#include "lowbit.h"
#include "operations.h"
#include "parallel.h"

namespace tianquan::TIANQUAN_ISA {
namespace {

constexpr int64_t kFewDenseRows = 12;  // like kFewRows, for dense weights
constexpr int kDenseStreamRows = 4;    // rows of a pass over a dense weight
constexpr int64_t kRowBlock = 384;     // rows of a chunk: a multiple of kTileRows and of kDenseRows
static_assert(kRowBlock % kTileRows == 0 && kRowBlock % kDenseRows == 0);
constexpr int64_t kDenseDepth = 256;         // in channels packed at a time: 16 KiB of 16 channels
constexpr int64_t kStreamBytes = 16 * 1024;  // least weight of a chunk with few rows

struct Product {
  Matrix matrix;
  Output output;
  int64_t channel_step;    // out channels of a chunk
  int64_t num_columns;     // chunks along O
  int64_t num_row_blocks;  // chunks along T
  const float* low;        // (T, R) of its adapter, or null
};

struct Activations {
  const float* x;
  int64_t stride;
  int64_t rows;
  QuantizedRows by_32;  // for int4 weights
  QuantizedRows by_64;  // for int8 weights
};

// out = activation(sum + what an adapter adds + bias) + residual for `rows` x `channels` sums, from row `row`
// on.
TIANQUAN_INLINE void write_sums(const Product& p, const float* sums, int64_t sums_stride, int64_t row,
                                int64_t rows, int64_t channel, int64_t channels) {
  const Matrix& m = p.matrix;
  const Output& out = p.output;
  for (int64_t r = 0; r < rows; ++r) {
    float* to = out.data + (row + r) * out.stride + channel;
    const float* residual = out.residual ? out.residual + (row + r) * out.residual_stride + channel : nullptr;
    const float* low = p.low ? p.low + (row + r) * m.rank : nullptr;
    for (int64_t c = 0; c < channels; c += 8) {
      const int64_t left = channels - c;
      F8 v = load(sums + r * sums_stride + c);
      if (low) v = add_up(m, low, channel + c, left, v);
      if (left >= 8) {
        if (m.bias) v += load(m.bias + channel + c);
        v = activate(v, out.activation);
        if (residual) v += load(residual + c);
        store(to + c, v);
      } else {
        if (m.bias) v += load_some(m.bias + channel + c, left);
        v = activate(v, out.activation);
        if (residual) v += load_some(residual + c, left);
        store_some(to + c, v, left);
      }
    }
  }
}

// Few rows, low-bit: R rows with P panels beginning at `channel`.
template <int R, int P>
TIANQUAN_INLINE void stream_panels(const Product& p, const Activations& a, int64_t row, int64_t channel,
                                   int64_t last) {
  const Matrix& m = p.matrix;
  Panel panels[P];
  for (int i = 0; i < P; ++i) panels[i] = find_panel(m, channel / kPanel + i);
  const int64_t padded = round_up(m.in, m.group_size);
  float sums[R * P * kPanel];
  if (m.format == Format::kInt4) {
    multiply_panels_int4<R, P>(panels, padded / kInt4Activations, a.by_32, row, sums);
  } else {
    multiply_panels_int8<R, P>(panels, padded / kInt8Activations, a.by_64, row, sums);
  }
  write_sums(p, sums, P * kPanel, row, R, channel, min_of(P * kPanel, last - channel));
}

// Few rows: R rows over the channels of a chunk.
template <bool kDense, int R>
TIANQUAN_INLINE void stream_rows(const Product& p, const Activations& a, int64_t row, int64_t first,
                                 int64_t last) {
  int64_t channel = first;
  if constexpr (kDense) {
    for (; channel < last; channel += 4) {
      const int64_t channels = min_of(4, last - channel);
      float sums[R][8] = {};
      multiply_dense_rows<R>(p.matrix, channel, channels, a.x + row * a.stride, a.stride, sums[0], 8);
      write_sums(p, sums[0], 8, row, R, channel, channels);
    }
  } else {
    constexpr bool kPairs4 = kStreamPanels<Format::kInt4, R> == 2,
                   kPairs8 = kStreamPanels<Format::kInt8, R> == 2;
    if constexpr (kPairs4 || kPairs8) {
      const bool is_paired = kPairs4 == kPairs8 || (p.matrix.format == Format::kInt4) == kPairs4;
      for (; is_paired && channel + kPanel < last; channel += 2 * kPanel) {
        stream_panels<R, 2>(p, a, row, channel, last);
      }
    }
    for (; channel < last; channel += kPanel) stream_panels<R, 1>(p, a, row, channel, last);
  }
}

// The rows that are left, at most R.
template <bool kDense, int R>
TIANQUAN_INLINE void stream_last_rows(const Product& p, const Activations& a, int64_t row, int64_t first,
                                      int64_t last) {
  if constexpr (R > 0) {
    if (a.rows - row == R) return stream_rows<kDense, R>(p, a, row, first, last);
    stream_last_rows<kDense, R - 1>(p, a, row, first, last);
  }
}

// A few rows at a time: their sums stay in registers, and the weight in the cache for the others.
template <bool kDense>
void stream_chunk(const Product& p, const Activations& a, int64_t column) {
  constexpr int kRows = kDense ? kDenseStreamRows : kStreamRows;
  const int64_t first = column * p.channel_step;
  const int64_t last = min_of(first + p.channel_step, p.matrix.out);
  int64_t row = 0;
  for (; row + kRows <= a.rows; row += kRows) stream_rows<kDense, kRows>(p, a, row, first, last);
  stream_last_rows<kDense, kRows - 1>(p, a, row, first, last);
}

// Many rows, low-bit: P panels beginning at `panel` over rows [row, row + rows).
template <Format F, int P, bool kHasOffsets>
void lowbit_chunk(const Product& p, const QuantizedRows& a, int64_t panel, int64_t row, int64_t rows,
                  void* scratch) {
  constexpr int kGroup = F == Format::kInt4 ? kInt4Activations : kInt8Activations;
  constexpr int64_t kGroups = kLowBitDepth / kGroup;
  const Matrix& m = p.matrix;
  float* sums = static_cast<float*>(scratch);  // [kRowBlock][kTileWidth]
  UnpackedPanels w;
  w.scales = sums + kRowBlock * kTileWidth;
  w.offsets = w.scales + kGroups * kTileWidth;
  w.starts = reinterpret_cast<int32_t*>(w.offsets + kGroups * kTileWidth);
  w.codes = reinterpret_cast<int8_t*>(w.starts + kGroups * kTileWidth);
  std::memset(sums, 0, static_cast<size_t>(rows * kTileWidth) * sizeof(float));
  const int64_t num_groups = ceil_div(m.in, m.group_size) * (m.group_size / kGroup);
  for (int64_t g0 = 0; g0 < num_groups; g0 += kGroups) {
    const int64_t groups = min_of(kGroups, num_groups - g0);
    for (int q = 0; q < P; ++q) {
      const Panel from = find_panel(m, panel + q);
      for (int64_t g = 0; g < groups; ++g) {
        if constexpr (F == Format::kInt4) {
          unpack_int4<P>(from, g0 + g, g, q, w);
        } else {
          unpack_int8<P>(from, g0 + g, g, q, w);
        }
      }
    }
    int64_t r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) {
      multiply_tile<F, kTileRows, P, kHasOffsets>(a, row + r, g0, groups, w, sums + r * kTileWidth);
    }
    for (; r < rows; ++r) {
      multiply_tile<F, 1, P, kHasOffsets>(a, row + r, g0, groups, w, sums + r * kTileWidth);
    }
  }
  const int64_t channel = panel * kPanel;
  write_sums(p, sums, kTileWidth, row, rows, channel, min_of(P * kPanel, m.out - channel));
}

constexpr size_t kLowBitScratch =
    kTileWidth * (kRowBlock + 3 * kLowBitDepth / kInt4Activations) * sizeof(float) +
    kLowBitDepth * kTileWidth;

// The panels of one column of chunks: at most P.
template <Format F, bool kHasOffsets, int P = kTilePanels>
void lowbit_columns(const Product& p, const QuantizedRows& a, int64_t column, int64_t row, int64_t rows,
                    void* scratch) {
  const int64_t panel = column * kTilePanels;
  if (P == 1 || ceil_div(p.matrix.out, kPanel) - panel >= P) {
    return lowbit_chunk<F, P, kHasOffsets>(p, a, panel, row, rows, scratch);
  }
  if constexpr (P > 1) lowbit_columns<F, kHasOffsets, P - 1>(p, a, column, row, rows, scratch);
}

void lowbit_block(const Product& p, const Activations& a, int64_t column, int64_t row, int64_t rows,
                  void* scratch) {
  if (p.matrix.format == Format::kInt8) {
    return lowbit_columns<Format::kInt8, false>(p, a.by_64, column, row, rows, scratch);
  }
  if (p.matrix.zero_points)
    return lowbit_columns<Format::kInt4, true>(p, a.by_32, column, row, rows, scratch);
  lowbit_columns<Format::kInt4, false>(p, a.by_32, column, row, rows, scratch);
}

constexpr size_t kDenseScratch = (kRowBlock + kDenseDepth + 8) * kDenseWidth * sizeof(float);

void dense_block(const Product& p, const Activations& a, int64_t column, int64_t row, int64_t rows,
                 void* scratch) {
  const Matrix& m = p.matrix;
  float* sums = static_cast<float*>(scratch);  // [kRowBlock][16]
  float* packed = sums + kRowBlock * kDenseWidth;
  const int64_t channel = column * kDenseWidth;
  for (int64_t k0 = 0; k0 < m.in; k0 += kDenseDepth) {
    const int64_t depth = min_of(kDenseDepth, m.in - k0);
    pack_dense(m, channel, k0, depth, packed);
    for (int64_t r = 0; r < rows; r += kDenseRows) {
      dense_rows<2>(min_of(kDenseRows, rows - r), a.x + (row + r) * a.stride + k0, a.stride, packed,
                    kDenseWidth, depth, sums + r * kDenseWidth, kDenseWidth, k0 > 0);
    }
  }
  write_sums(p, sums, kDenseWidth, row, rows, channel, min_of(kDenseWidth, m.out - channel));
}

QuantizedRows quantize_rows(Runtime& runtime, const Activations& a, int64_t channels, int64_t group,
                            int bias) {
  QuantizedRows rows;
  rows.padded = round_up(channels, kInt8Activations);  // a whole group of either size
  rows.groups = rows.padded / group;
  const bool is_32 = group == kInt4Activations;
  rows.bias = bias;
  rows.largest_code = is_32 ? kInt4ActivationMax : kInt8ActivationMax;
  const size_t entries = static_cast<size_t>(a.rows * rows.groups);
  const size_t bytes = static_cast<size_t>(a.rows * rows.padded);
  rows.codes = static_cast<uint8_t*>(runtime.shared(is_32 ? Shared::kCodes32 : Shared::kCodes64, bytes));
  rows.scales = static_cast<float*>(
      runtime.shared(is_32 ? Shared::kScales32 : Shared::kScales64, entries * sizeof(float)));
  rows.sums = static_cast<int32_t*>(
      runtime.shared(is_32 ? Shared::kSums32 : Shared::kSums64, 2 * entries * sizeof(int32_t)));
  rows.starts = rows.sums + entries;
  constexpr int64_t kRows = 4;  // of a chunk: two microseconds or more
  auto body = [&](int64_t chunk, int) {
    const int64_t last = min_of((chunk + 1) * kRows, a.rows);
    for (int64_t row = chunk * kRows; row < last; ++row) {
      quantize_row(a.x + row * a.stride, channels, rows, row, group);
    }
  };
  parallel_for(runtime, ceil_div(a.rows, kRows), body);
  return rows;
}

// Cut one product into chunks.
Product plan(const Matrix& matrix, const Output& output, const float* low, int64_t rows, bool few) {
  Product p{matrix, output, 0, 0, 1, low};
  const bool dense = is_dense(matrix.format);
  if (few) {
    const int64_t bytes =
        dense ? matrix.in * dense_bytes(matrix.format) : matrix.in / (matrix.format == Format::kInt4 ? 2 : 1);
    p.channel_step = round_up(max_of(1, kStreamBytes / max_of(1, bytes)), rows == 1 ? kPanel : 2 * kPanel);
  } else {
    p.channel_step = dense ? kDenseWidth : kTileWidth;
    p.num_row_blocks = ceil_div(rows, kRowBlock);
  }
  p.num_columns = ceil_div(matrix.out, p.channel_step);
  return p;
}

}  // namespace

void matmul(Runtime& runtime, const Matrix* matrices, const Output* outputs, int64_t count, const float* x,
            int64_t x_stride, int64_t rows) {
  Activations a{x, x_stride, rows, {}, {}};
  bool few = rows <= kFewRows;
  for (int64_t i = 0; i < count; ++i) few = few && (rows <= kFewDenseRows || !is_dense(matrices[i].format));
  Product products[kMaxGroup];
  float* lows[kMaxGroup] = {};
  multiply_all_down(runtime, matrices, count, x, x_stride, rows, lows);
  int64_t num_chunks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Matrix& m = matrices[i];
    if (m.format == Format::kInt4 && !a.by_32.codes) {
      a.by_32 = quantize_rows(runtime, a, m.in, kInt4Activations, few ? 0 : kInt4ActivationBias);
    }
    if (m.format == Format::kInt8 && !a.by_64.codes) {
      a.by_64 = quantize_rows(runtime, a, m.in, kInt8Activations, kInt8ActivationBias);
    }
    products[i] = plan(m, outputs[i], lows[i], rows, few);
    num_chunks += products[i].num_columns * products[i].num_row_blocks;
  }
  const auto find_product = [&](int64_t* chunk) {
    const Product* p = products;
    for (; *chunk >= p->num_columns * p->num_row_blocks; ++p) *chunk -= p->num_columns * p->num_row_blocks;
    return p;
  };
  if (few) {
    auto stream = [&](int64_t chunk, int) {
      const Product* p = find_product(&chunk);
      is_dense(p->matrix.format) ? stream_chunk<true>(*p, a, chunk) : stream_chunk<false>(*p, a, chunk);
    };
    return parallel_stream(runtime, num_chunks, stream);
  }
  auto body = [&](int64_t chunk, int thread) {
    const Product* p = find_product(&chunk);
    const int64_t row = chunk / p->num_columns * kRowBlock;
    const int64_t block_rows = min_of(kRowBlock, rows - row);
    void* scratch = runtime.scratch(thread, max_of(kLowBitScratch, kDenseScratch));
    if (is_dense(p->matrix.format)) {
      dense_block(*p, a, chunk % p->num_columns, row, block_rows, scratch);
    } else {
      lowbit_block(*p, a, chunk % p->num_columns, row, block_rows, scratch);
    }
  };
  parallel_for(runtime, num_chunks, body);
}

}  // namespace tianquan::TIANQUAN_ISA
