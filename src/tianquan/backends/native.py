"""The operations of `ops.Ops` on the C++ kernels: the default on a CPU.

Nothing is computed here. Weights become C structs once, arrays become addresses, and each operation is one
call that runs on all threads. Weights may be read-only mappings of a file; they are never copied.

Legend as in `ops.py`: T rows, C channels, H heads, K kv heads, D head dim, B sequences.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tianquan.backends.argument_checks import check, check_heads, check_offsets, check_parameter
from tianquan.backends.kv_cache import KVCache, SequenceBatch
from tianquan.backends.ops import Activation, DecoderLayer, DecoderShape, Offsets, StoredWeight, Weight
from tianquan.errors import BackendError
from tianquan.kernels import structs
from tianquan.kernels.library import Isa, KernelLibrary, row_stride
from tianquan.kernels.structs import FORMAT_CODES, pointer
from tianquan.quantization.adapted import AdaptedTensor
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import PANEL, QuantFormat, QuantizedTensor
from tianquan.quantization.quantizers import quantize

Float32 = npt.NDArray[np.float32]
KVFormat = Literal["float32", "float16", "int8"]
KV_FORMATS: tuple[KVFormat, ...] = get_args(KVFormat)
_KV_DTYPES: dict[KVFormat, type[np.generic]] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NativeLinear:
    """One or several matrices with the same input, and the arrays their structs point into."""

    matrices: ctypes.Array[structs.Matrix]
    weights: tuple[Weight, ...]
    owners: tuple[Any, ...]

    @property
    def in_features(self) -> int:
        """Channels of the input."""
        return int(self.matrices[0].in_)

    @property
    def out_features(self) -> list[int]:
        """Channels of each output."""
        return [int(m.out) for m in self.matrices]


@dataclass
class NativeKVCache(KVCache):
    """A cache in float32, float16 or int8; int8 has a scale for each token and head."""

    key_scales: Float32 | None = None  # (L, N, K, S)
    value_scales: Float32 | None = None

    def arrays(self) -> tuple[Float32, ...]:
        """See `KVCache.arrays`."""
        scales = () if self.key_scales is None or self.value_scales is None else (self.key_scales, self.value_scales)
        return (self.keys, self.values, *scales)

    @cached_property
    def stores(self) -> ctypes.Array[structs.KeyValueStore]:
        """The C description of every layer: made once, because the arrays stay where they are."""
        num_layers, _, num_kv_heads, block_size, head_dim = self.keys.shape
        result = (structs.KeyValueStore * num_layers)()
        for layer in range(num_layers):
            result[layer] = structs.KeyValueStore(
                FORMAT_CODES[str(self.keys.dtype)],
                num_kv_heads,
                block_size,
                head_dim,
                pointer(self.keys[layer]),
                pointer(self.values[layer]),
                None if self.key_scales is None else pointer(self.key_scales[layer]),
                None if self.value_scales is None else pointer(self.value_scales[layer]),
            )
        return result


@lru_cache(maxsize=8)
def _inverse_frequencies(head_dim: int, theta: float) -> Float32:
    """Return theta^(-2i/D) for i < D/2, rounded as the definition in `reference.py` rounds it."""
    half = head_dim // 2
    exponents = np.arange(half, dtype=np.float32) / np.float32(half)
    return (1.0 / theta**exponents).astype(np.float32)


def _describe(weight: Weight, bias: DenseTensor | None) -> tuple[structs.Matrix, tuple[Any, ...]]:
    """Return the struct of a weight and the arrays it points into."""
    if isinstance(weight, AdaptedTensor):
        matrix, owners = _describe(weight.base, bias)
        down, up = np.ascontiguousarray(weight.down, np.float32), _in_panels(weight.up)
        matrix.down, matrix.up, matrix.rank = pointer(down), pointer(up), weight.rank
        return matrix, (*owners, down, up)
    bias_values = None if bias is None else np.ascontiguousarray(bias.to_float32())
    num_out, num_in = weight.shape
    check(bias_values is None or bias_values.shape == (num_out,), f"a bias does not have the {num_out} outputs")
    if isinstance(weight, QuantizedTensor):
        arrays = [weight.codes, weight.scales]
        if weight.zero_points is not None:
            arrays.append(weight.zero_points)
        name, group_size = f"int{weight.format.bits}", weight.format.group_size
    else:
        arrays, name, group_size = [weight.data], weight.format, 0
    # a transposed or sliced array is copied once here; what is read from a file never is
    arrays = [np.ascontiguousarray(array) for array in arrays]
    addresses = [pointer(array) for array in arrays] + [None, None]
    matrix = structs.Matrix(FORMAT_CODES[name], group_size, num_out, num_in, *addresses[:3], bias=pointer(bias_values))
    return matrix, (*arrays, bias_values)


def _in_panels(up: Float32) -> Float32:
    """Return a matrix (out, rank) as the kernels read it: panels of out channels (P, rank, 8), the last one padded."""
    num_out, rank = up.shape
    padded = np.zeros((-(-num_out // PANEL), PANEL, rank), np.float32)
    padded.reshape(-1, rank)[:num_out] = up
    return np.ascontiguousarray(padded.transpose(0, 2, 1))


def _batch_struct(batch: SequenceBatch, num_blocks: int, block_size: int) -> tuple[structs.Batch, tuple[Any, ...]]:
    offsets = np.ascontiguousarray(batch.query_offsets, np.int32)
    cached = np.ascontiguousarray(batch.num_cached, np.int32)
    tables = np.ascontiguousarray(batch.block_tables, np.int32)
    check_offsets("query", offsets, int(offsets[-1]) if len(offsets) else 0)
    check(len(tables) == len(cached) == len(offsets) - 1, "block tables, cached counts and offsets differ in number")
    # a wrong block number would write outside the cache: cheap to look at here, impossible to see later
    for table, past, new in zip(tables, cached.tolist(), np.diff(offsets).tolist(), strict=True):
        check(past >= 0, f"a sequence has {past} cached tokens")
        used = table[: -(-(past + new) // block_size)]
        check(len(used) * block_size >= past + new, "block table too short for the sequence")
        check(len(used) == 0 or (used.min() >= 0 and used.max() < num_blocks), "block number outside the cache")
    struct = structs.Batch(len(cached), pointer(offsets), pointer(cached), pointer(tables), tables.shape[1])
    return struct, (offsets, cached, tables)


class NativeFusedDecoder:
    """The whole language model for one new token of each sequence, in one native call."""

    def __init__(
        self,
        library: KernelLibrary,
        layers: Sequence[DecoderLayer],
        final_norm: Float32,
        head: NativeLinear,
        shape: DecoderShape,
    ) -> None:
        """Describe all layers to the kernels once."""
        self._library = library
        self._owners = (list(layers), final_norm, head)
        self._layers = (structs.LayerWeights * len(layers))()
        for item, layer in zip(self._layers, layers, strict=True):
            item.attention_norm, item.mlp_norm = pointer(layer.attention_norm), pointer(layer.mlp_norm)
            item.query_key_value[:] = layer.query_key_value.matrices
            item.attention_output = layer.attention_output.matrices[0]
            item.gate_up[:] = layer.gate_up.matrices
            item.down = layer.down.matrices[0]
        self._final_norm, self._head, self._shape = final_norm, head, shape
        self._frequencies = _inverse_frequencies(shape.head_dim, shape.rope_theta)

    def __call__(self, hidden: Float32, cache: KVCache, batch: SequenceBatch) -> Float32:
        """See `ops.FusedDecoder`."""
        assert isinstance(cache, NativeKVCache)
        check(batch.is_decode, "a decode step has one new token of each sequence")
        expected = (len(batch.num_cached), self._head.in_features)
        check(hidden.shape == expected, f"embeddings are {hidden.shape}, expected {expected}")
        hidden = np.ascontiguousarray(hidden, np.float32)
        logits = np.empty((len(hidden), self._head.out_features[0]), np.float32)
        batch_struct, owners = _batch_struct(batch, cache.num_blocks, cache.block_size)
        stores, own = cache.stores, (len(self._layers), self._shape.num_kv_heads, self._shape.head_dim)
        found = (len(stores), cache.keys.shape[2], cache.keys.shape[4])
        check(found == own, f"the cache has {found} layers, heads and channels, the decoder {own}")
        arguments = structs.DecoderArguments(
            self._layers,
            stores,
            len(self._layers),
            pointer(self._final_norm),
            self._head.matrices[0],
            self._shape.num_heads,
            self._shape.num_kv_heads,
            self._shape.head_dim,
            self._shape.rms_norm_eps,
            pointer(self._frequencies),
            pointer(hidden),
            pointer(logits),
            batch_struct,
        )
        self._library.decode(arguments)
        del owners  # alive until here
        return logits


class NativeOps:
    """The operations of `ops.Ops` in C++."""

    name = "native"

    def __init__(self, threads: int | None = None, isa: Isa | None = None, kv_format: KVFormat = "float16") -> None:
        """Open the kernels.

        Args:
            threads: threads of the pool; None for every processor at hand.
            isa: instruction set; None for the best this machine has.
            kv_format: what keys and values are stored in.

        Raises:
            BackendError: the kernels are missing or the machine cannot run them.
        """
        if kv_format not in KV_FORMATS:
            raise BackendError(f"kv_format is {kv_format!r}, expected one of {', '.join(KV_FORMATS)}")
        self.library = KernelLibrary(threads, isa)
        self.kv_format: KVFormat = kv_format
        if isa is None and self.library.isa == "scalar":
            _log.warning("this processor has no AVX2: the scalar kernels run, which are many times slower")

    @property
    def threads(self) -> int:
        """Threads that share the work."""
        return self.library.threads

    @property
    def isa(self) -> Isa:
        """Instruction set the kernels run with."""
        return self.library.isa

    def quantize(self, weight: Float32, format: QuantFormat, importance: Float32 | None = None) -> QuantizedTensor:
        """Return `weight` (O, I) in a low-bit format; see `quantization.quantizers.quantize`."""
        return quantize(weight, format, importance, self.library)

    # Handles -----------------------------------------------------------------------------------------
    def make_parameter(self, tensor: DenseTensor) -> Float32:
        """See `Ops.make_parameter`."""
        return np.ascontiguousarray(tensor.to_float32())

    def make_linear(self, weight: Weight, bias: DenseTensor | None) -> NativeLinear:
        """See `Ops.make_linear`."""
        return self.make_linear_group([weight], [bias])

    def make_linear_group(self, weights: Sequence[Weight], biases: Sequence[DenseTensor | None]) -> NativeLinear:
        """See `Ops.make_linear_group`."""
        assert 1 <= len(weights) <= structs.MAX_GROUP
        assert len({w.shape[1] for w in weights}) == 1, [w.shape for w in weights]
        matrices = (structs.Matrix * len(weights))()
        owners: list[Any] = []
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            matrices[i], arrays = _describe(weight, bias)
            owners.extend(arrays)
        return NativeLinear(matrices, tuple(weights), tuple(owners))

    def make_embedding(self, weight: StoredWeight) -> NativeLinear:
        """See `Ops.make_embedding`."""
        return self.make_linear(weight, None)

    def make_kv_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> NativeKVCache:
        """See `Ops.make_kv_cache`."""
        shape = (num_layers, num_blocks, num_kv_heads, block_size, head_dim)
        dtype = _KV_DTYPES[self.kv_format]
        keys, values = np.zeros(shape, dtype), np.zeros(shape, dtype)
        if self.kv_format != "int8":
            return NativeKVCache(keys, values)
        return NativeKVCache(keys, values, np.zeros(shape[:-1], np.float32), np.zeros(shape[:-1], np.float32))

    def make_fused_decoder(
        self, layers: Sequence[DecoderLayer], final_norm: Float32, head: NativeLinear, shape: DecoderShape
    ) -> NativeFusedDecoder:
        """See `Ops.make_fused_decoder`."""
        return NativeFusedDecoder(self.library, layers, final_norm, head, shape)

    def constant_weight(self, linear: NativeLinear) -> Weight | None:
        """See `Ops.constant_weight`."""
        return linear.weights[0]

    # Data in and out ----------------------------------------------------------------------------------
    def array(self, data: npt.NDArray[Any]) -> Float32:
        """See `Ops.array`."""
        return np.ascontiguousarray(data, dtype=np.float32)

    def to_numpy(self, x: Float32) -> Float32:
        """See `Ops.to_numpy`."""
        return x

    def apply_layer(self, layer: Callable[..., Float32], hidden: Float32, *arguments: Any) -> Float32:
        """See `Ops.apply_layer`."""
        return layer(hidden, *arguments)

    def concatenate(self, arrays: Sequence[Float32]) -> Float32:
        """See `Ops.concatenate`."""
        return np.concatenate(arrays)

    # Operations ---------------------------------------------------------------------------------------
    def linear(
        self,
        x: Float32,
        linear: NativeLinear,
        activation: Activation | None = None,
        residual: Float32 | None = None,
    ) -> Float32:
        """See `Ops.linear`."""
        check(x.shape[1] == linear.in_features, f"rows of {x.shape[1]}, expected {linear.in_features}")
        out = np.empty((len(x), linear.out_features[0]), np.float32)
        self.library.matmul(x, linear.matrices, [out], activation, residual)
        return out

    def linear_group(self, x: Float32, group: NativeLinear) -> tuple[Float32, ...]:
        """See `Ops.linear_group`. The results lie side by side in one array."""
        check(x.shape[1] == group.in_features, f"rows of {x.shape[1]}, expected {group.in_features}")
        edges = np.cumsum([0, *group.out_features])
        merged = np.empty((len(x), edges[-1]), np.float32)
        outputs = tuple(merged[:, a:b] for a, b in itertools.pairwise(edges))
        self.library.matmul(x, group.matrices, outputs)
        return outputs

    def embedding(self, token_ids: npt.NDArray[np.integer[Any]], table: NativeLinear) -> Float32:
        """See `Ops.embedding`."""
        rows = np.ascontiguousarray(token_ids, np.int64)
        num_rows = table.out_features[0]
        inside = rows.size == 0 or (rows.min() >= 0 and rows.max() < num_rows)
        check(bool(inside), f"a token id is outside the table of {num_rows} rows")
        out = np.empty((len(rows), table.in_features), np.float32)
        self.library.embedding(table.matrices[0], rows, out)
        return out

    def conv1d(
        self,
        x: Float32,
        linear: NativeLinear,
        kernel: int,
        stride: int,
        activation: Activation | None,
        offsets: Offsets,
    ) -> Float32:
        """See `Ops.conv1d`. The windows overlap in one padded copy of a segment; they are never laid out."""
        channels = x.shape[1]
        check(kernel % 2 == 1, f"a window of {kernel} frames has no middle")
        check(linear.in_features == kernel * channels, f"{kernel} x {channels} channels, not {linear.in_features}")
        check_offsets("segment", np.asarray(offsets), len(x))
        pad, lengths = (kernel - 1) // 2, np.diff(offsets)
        ends = np.concatenate([[0], np.cumsum((lengths - 1) // stride + 1)])
        out = np.empty((ends[-1], linear.out_features[0]), np.float32)
        for n, num_frames in enumerate(lengths):
            padded = np.zeros((num_frames + 2 * pad, channels), np.float32)
            padded[pad : pad + num_frames] = x[offsets[n] : offsets[n + 1]]
            rows = out[ends[n] : ends[n + 1]]
            self.library.matmul(padded, linear.matrices, [rows], activation, stride=stride * channels)
        return out

    def rms_norm(self, x: Float32, weight: Float32, eps: float) -> Float32:
        """See `Ops.rms_norm`."""
        check_parameter(weight, x)
        return self.library.rms_norm(x, weight, eps)

    def layer_norm(self, x: Float32, weight: Float32, bias: Float32, eps: float) -> Float32:
        """See `Ops.layer_norm`."""
        check_parameter(weight, x)
        check_parameter(bias, x)
        return self.library.layer_norm(x, weight, bias, eps)

    def rope(self, x: Float32, positions: npt.NDArray[np.int32], theta: float) -> Float32:
        """See `Ops.rope`."""
        check(positions.shape == x.shape[:1], f"{positions.shape} positions of {x.shape}")
        positions = np.ascontiguousarray(positions, np.int32)
        return self.library.rope(x, positions, _inverse_frequencies(x.shape[2], theta))

    def swiglu(self, gate: Float32, up: Float32) -> Float32:
        """See `Ops.swiglu`."""
        check(gate.shape == up.shape, f"gate {gate.shape}, up {up.shape}")
        return self.library.swiglu(gate, up)

    def attention(
        self,
        q: Float32,
        k: Float32,
        v: Float32,
        query_offsets: Offsets,
        key_offsets: Offsets,
        causal: bool,
    ) -> Float32:
        """See `Ops.attention`."""
        check(k.shape == v.shape, f"keys {k.shape}, values {v.shape}")
        check_heads(q, k)
        queries = np.ascontiguousarray(query_offsets, np.int32)
        keys = np.ascontiguousarray(key_offsets, np.int32)
        check_offsets("query", queries, len(q))
        check_offsets("key", keys, len(k))
        check(len(keys) == len(queries), f"{len(queries)} query offsets, {len(keys)} key offsets")
        check(not causal or bool(np.all(np.diff(keys) >= np.diff(queries))), "a causal row needs a key to see")
        out = np.empty(q.shape, np.float32)
        self.library.attention(
            structs.AttentionArguments(
                *(pointer(a) for a in (q, k, v)),
                *(row_stride(a) for a in (q, k, v)),
                pointer(out),
                q.shape[1],
                k.shape[1],
                q.shape[2],
                causal,
                len(queries) - 1,
                pointer(queries),
                pointer(keys),
            )
        )
        return out

    def cached_attention(
        self, q: Float32, k: Float32, v: Float32, cache: KVCache, layer: int, batch: SequenceBatch
    ) -> Float32:
        """See `Ops.cached_attention`."""
        assert isinstance(cache, NativeKVCache)
        expected = (len(q), *cache.keys.shape[2::2])
        check(k.shape == v.shape == expected, f"keys {k.shape}, values {v.shape}, expected {expected}")
        check_heads(q, k)
        num_new = int(batch.query_offsets[-1])
        check(num_new == len(q), f"the batch has {num_new} new tokens, the queries {len(q)} rows")
        check(0 <= layer < len(cache.keys), f"layer {layer} is outside the cache of {len(cache.keys)}")
        batch_struct, owners = _batch_struct(batch, cache.num_blocks, cache.block_size)
        out = np.empty(q.shape, np.float32)
        self.library.cached_attention(
            structs.CachedAttentionArguments(
                *(pointer(a) for a in (q, k, v)),
                *(row_stride(a) for a in (q, k, v)),
                pointer(out),
                q.shape[1],
                0,
                cache.stores[layer],
                batch_struct,
            )
        )
        del owners  # alive until here
        return out
