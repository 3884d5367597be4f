// Runs every kernel of every instruction set with odd sizes under a sanitizer: built by
// `cmake -DTIANQUAN_SANITIZE=address` (or `thread`), exits 0 when nothing was found.
//
// Buffers have exactly the size the kernels are told, so that a read or write past an edge is seen. What the
// kernels compute is the business of the Python tests; here the results are only looked at to be finite.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels.h"

using namespace tianquan;

namespace {

uint32_t state = 1;
uint32_t random_bits() { return state = state * 1664525u + 1013904223u; }
float random_value() { return static_cast<float>(random_bits() >> 8) / 8388608.0f - 1.0f; }

// Heap memory of exactly `count` elements.
template <typename T>
struct Buffer {
  explicit Buffer(int64_t count) : size(count), data(new T[static_cast<size_t>(count)]()) {}
  ~Buffer() { delete[] data; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const int64_t size;
  T* const data;
};

struct Floats : Buffer<float> {
  explicit Floats(int64_t count) : Buffer(count) {
    for (int64_t i = 0; i < count; ++i) data[i] = random_value();
  }
  void check(const char* what) const {
    for (int64_t i = 0; i < size; ++i) {
      if (std::isfinite(data[i])) continue;
      std::fprintf(stderr, "%s: value %ld is not finite\n", what, static_cast<long>(i));
      std::exit(1);
    }
  }
};

struct FormatCase {
  Format format;
  int group_size;
  bool symmetric;
};
constexpr FormatCase kFormats[] = {
    {Format::kFloat32, 0, true}, {Format::kFloat16, 0, true}, {Format::kBfloat16, 0, true},
    {Format::kInt4, 32, true},   {Format::kInt4, 64, true},   {Format::kInt4, 32, false},
    {Format::kInt4, 64, false},  {Format::kInt8, 64, true},
};

// A weight in exactly as many bytes as its format needs; low-bit ones come from the quantizer under test.
struct Weight {
  Weight(Runtime& runtime, const Kernels& kernels, const FormatCase& c, int64_t out, int64_t in)
      : bytes(byte_count(c, out, in)),
        scales(scale_count(c, out, in)),
        zero_points(c.symmetric ? 0 : scales.size) {
    matrix = {c.format, c.group_size, out, in, bytes.data, nullptr, nullptr, nullptr, nullptr, nullptr, 0};
    if (is_dense(c.format)) {  // small positive numbers in each format: no NaN bit patterns
      const uint16_t half = c.format == Format::kFloat16 ? 0x2E00 : 0x3DC0;
      for (int64_t i = 0; i < out * in; ++i) {
        if (c.format == Format::kFloat32) {
          reinterpret_cast<float*>(bytes.data)[i] = random_value();
        } else {
          reinterpret_cast<uint16_t*>(bytes.data)[i] = half;
        }
      }
      return;
    }
    const Floats values(out * in), importance(in);
    for (int64_t i = 0; i < in; ++i) importance.data[i] = std::fabs(importance.data[i]);
    const Buffer<float> factors(3);
    for (int i = 0; i < 3; ++i) factors.data[i] = 0.9f + 0.1f * static_cast<float>(i);
    matrix.scales = scales.data;
    if (!c.symmetric) matrix.zero_points = zero_points.data;
    kernels.quantize(runtime, {values.data, importance.data, out, in, c.format == Format::kInt4 ? 4 : 8,
                               c.group_size, c.symmetric, 3, factors.data, bytes.data, scales.data,
                               c.symmetric ? nullptr : zero_points.data});
  }
  static int64_t scale_count(const FormatCase& c, int64_t out, int64_t in) {
    return is_dense(c.format) ? 0 : ceil_div(out, kPanel) * ceil_div(in, c.group_size) * kPanel;
  }
  static int64_t byte_count(const FormatCase& c, int64_t out, int64_t in) {
    if (is_dense(c.format)) return out * in * (c.format == Format::kFloat32 ? 4 : 2);
    return scale_count(c, out, in) * c.group_size / (c.format == Format::kInt4 ? 2 : 1);
  }
  Buffer<uint8_t> bytes;
  Buffer<uint16_t> scales, zero_points;
  Matrix matrix;
};

void run_products(Runtime& runtime, const Kernels& kernels) {
  const int64_t shapes[][2] = {{3, 5}, {20, 37}, {72, 160}, {26, 588}};
  const int64_t rows_list[] = {1, 2, 3, 5, 13, 14, 195};
  for (const FormatCase& c : kFormats) {
    for (const auto& shape : shapes) {
      const int64_t out = shape[0], in = shape[1];
      Weight weight(runtime, kernels, c, out, in);
      const Floats bias(out);
      weight.matrix.bias = bias.data;
      for (int64_t rows : rows_list) {
        const Floats x(rows * in), residual(rows * out), first(rows * out), second(rows * out);
        const int64_t rank = 5;
        const Floats down(rank * in), up(ceil_div(out, kPanel) * rank * kPanel);
        Matrix matrices[2] = {weight.matrix, weight.matrix};
        matrices[1].down = down.data;
        matrices[1].up = up.data;
        matrices[1].rank = rank;
        const Output outputs[2] = {{first.data, out, residual.data, out, Activation::kGelu, 0},
                                   {second.data, out, nullptr, 0, Activation::kGeluTanh, 0}};
        kernels.matmul(runtime, matrices, outputs, 2, x.data, in, rows);
        first.check("matmul");
        second.check("matmul");
      }
      const Buffer<int64_t> ids(3);
      ids.data[1] = out - 1;
      const Floats embedded(3 * in);
      kernels.embedding(runtime, weight.matrix, ids.data, 3, embedded.data);
      embedded.check("embedding");
    }
  }
}

void run_rows(Runtime& runtime, const Kernels& kernels) {
  for (int64_t channels : {1, 7, 8, 37, 72}) {
    const int64_t rows = 17;
    const Floats x(rows * channels), y(rows * channels), weight(channels), bias(channels),
        out(rows * channels);
    kernels.rms_norm(runtime, x.data, channels, weight.data, 1e-5f, out.data, rows, channels);
    out.check("rms_norm");
    kernels.layer_norm(runtime, x.data, channels, weight.data, bias.data, 1e-5f, out.data, rows, channels);
    out.check("layer_norm");
    kernels.swiglu(runtime, x.data, channels, y.data, channels, out.data, rows, channels);
    out.check("swiglu");
  }
  for (int64_t head_dim : {2, 10, 64}) {
    const int64_t rows = 9, heads = 3, width = heads * head_dim;
    const Floats x(rows * width), frequencies(head_dim / 2), out(rows * width);
    const Buffer<int32_t> positions(rows);
    for (int64_t i = 0; i < rows; ++i) positions.data[i] = static_cast<int32_t>(i * 100);
    kernels.rope(runtime, x.data, width, positions.data, frequencies.data, out.data, width, rows, heads,
                 head_dim);
    out.check("rope");
  }
}

void run_attention(Runtime& runtime, const Kernels& kernels) {
  for (int32_t head_dim : {5, 16, 72}) {
    for (int32_t causal : {0, 1}) {
      const int32_t heads = 6, kv_heads = 2;
      const Buffer<int32_t> queries(4), keys(4);
      const int32_t query_edges[] = {0, 1, 1, 130}, key_edges[] = {0, 3, 4, 540};
      for (int i = 0; i < 4; ++i) {
        queries.data[i] = query_edges[i];
        keys.data[i] = key_edges[i];
      }
      const Floats q(130 * heads * head_dim), k(540 * kv_heads * head_dim), v(540 * kv_heads * head_dim);
      const Floats out(q.size);
      kernels.attention(runtime,
                        {q.data, k.data, v.data, heads * head_dim, kv_heads * head_dim, kv_heads * head_dim,
                         out.data, heads, kv_heads, head_dim, causal, 3, queries.data, keys.data});
      out.check("attention");
    }
  }
}

// The cache of some layers in one format, and the tables of a batch over it.
struct Cache {
  Cache(Format format, int64_t layers, int32_t kv_heads, int32_t head_dim, int64_t sequences)
      : rows(sequences * kBlocks * kv_heads * kBlockSize),
        keys(layers * rows * head_dim * bytes_of(format)),
        values(keys.size),
        key_scales(layers * rows),
        value_scales(layers * rows),
        tables(sequences * kBlocks),
        offsets(sequences + 1),
        cached(sequences),
        stores(layers) {
    const int64_t layer_bytes = rows * head_dim * bytes_of(format);
    for (int64_t i = 0; i < layers; ++i) {
      stores.data[i] = {format,
                        kv_heads,
                        kBlockSize,
                        head_dim,
                        keys.data + i * layer_bytes,
                        values.data + i * layer_bytes,
                        key_scales.data + i * rows,
                        value_scales.data + i * rows};
    }
    for (int64_t i = 0; i < tables.size; ++i) tables.data[i] = static_cast<int32_t>(tables.size - 1 - i);
  }
  // Add lengths[b] tokens to each sequence.
  Batch next(const std::vector<int32_t>& lengths) {
    for (size_t b = 0; b < lengths.size(); ++b) {
      cached.data[b] += offsets.data[b + 1] - offsets.data[b];
    }
    for (size_t b = 0; b < lengths.size(); ++b) offsets.data[b + 1] = offsets.data[b] + lengths[b];
    return {static_cast<int64_t>(lengths.size()), offsets.data, cached.data, tables.data, kBlocks};
  }
  static int64_t bytes_of(Format format) {
    return format == Format::kFloat32 ? 4 : format == Format::kFloat16 ? 2 : 1;
  }
  static constexpr int64_t kBlocks = 12;
  static constexpr int32_t kBlockSize = 8;
  const int64_t rows;
  Buffer<char> keys, values;
  Buffer<float> key_scales, value_scales;
  Buffer<int32_t> tables, offsets, cached;
  Buffer<KeyValueStore> stores;
};

void run_cached_attention(Runtime& runtime, const Kernels& kernels) {
  for (Format format : {Format::kFloat32, Format::kFloat16, Format::kInt8}) {
    for (int32_t head_dim : {5, 64}) {
      const int32_t heads = 5, kv_heads = 1;
      Cache cache(format, 1, kv_heads, head_dim, 2);
      for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{70, 3}, {1, 1}, {2, 1}, {1, 30}}) {
        const int64_t rows = lengths[0] + lengths[1];
        const Floats q(rows * heads * head_dim), k(rows * kv_heads * head_dim), v(k.size), out(q.size);
        kernels.cached_attention(
            runtime, {q.data, k.data, v.data, heads * head_dim, kv_heads * head_dim, kv_heads * head_dim,
                      out.data, heads, 0, cache.stores.data[0], cache.next(lengths)});
        out.check("cached attention");
      }
    }
  }
}

void run_decode(Runtime& runtime, const Kernels& kernels) {
  const int32_t heads = 6, kv_heads = 2, head_dim = 10;
  const int64_t hidden = 72, intermediate = 100, vocab = 61, layers = 2;
  for (const FormatCase& c : kFormats) {
    Weight q(runtime, kernels, c, heads * head_dim, hidden),
        k(runtime, kernels, c, kv_heads * head_dim, hidden);
    Weight o(runtime, kernels, c, hidden, heads * head_dim), up(runtime, kernels, c, intermediate, hidden);
    Weight down(runtime, kernels, c, hidden, intermediate), head(runtime, kernels, c, vocab, hidden);
    const Floats norm(hidden), frequencies(head_dim / 2);
    const LayerWeights layer{
        norm.data, norm.data, {q.matrix, k.matrix, k.matrix}, o.matrix, {up.matrix, up.matrix}, down.matrix};
    const std::vector<LayerWeights> all(layers, layer);
    for (int32_t sequences : {1, 3}) {
      Cache cache(Format::kFloat16, layers, kv_heads, head_dim, sequences);
      for (int step = 0; step < 10; ++step) {
        const Floats embeddings(sequences * hidden), logits(sequences * vocab);
        kernels.decode(runtime, {all.data(), cache.stores.data, layers, norm.data, head.matrix, heads,
                                 kv_heads, head_dim, 1e-5f, frequencies.data, embeddings.data, logits.data,
                                 cache.next(std::vector<int32_t>(static_cast<size_t>(sequences), 1))});
        logits.check("decode");
      }
    }
  }
}

}  // namespace

int main() {
  for (const char* isa : {"scalar", "avx2", "avx512_vnni"}) {
    const Kernels* kernels = find_kernels(isa);
    if (!kernels) continue;
    for (int threads : {1, 3}) {
      Runtime runtime(threads);
      run_products(runtime, *kernels);
      run_rows(runtime, *kernels);
      run_attention(runtime, *kernels);
      run_cached_attention(runtime, *kernels);
      run_decode(runtime, *kernels);
    }
    std::printf("%s: nothing found\n", isa);
  }
  return 0;
}
