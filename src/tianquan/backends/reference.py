"""The definition of every operation: plain numpy in float32, short enough to check by eye.

Other backends are tested against this one. It is correct for any size, not fast.
Legend as in `ops.py`: T rows, C channels, H heads, K kv heads, D head dim, S keys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.backends.kv_cache import KVCache, SequenceBatch
from tianquan.backends.ops import (
    Activation,
    DecoderLayer,
    DecoderShape,
    FusedDecoder,
    Offsets,
    StoredWeight,
    Weight,
)
from tianquan.quantization.adapted import AdaptedTensor, to_float32
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import QuantFormat, QuantizedTensor
from tianquan.quantization.quantizers import quantize

Float32 = npt.NDArray[np.float32]

_QUERY_ROWS = 256  # rows of one attention block: a (256, S) score matrix is the most ever stored


@dataclass(frozen=True)
class ReferenceLinear:
    """A matrix in the format it is stored in and its float32 bias; expanded to float32 at each use."""

    weight: Weight  # (out, in)
    bias: Float32 | None  # (out,)


def _erf(x: Float32) -> Float32:
    """Return the error function to float32 accuracy.

    Abramowitz and Stegun 7.1.5 (Maclaurin series) in float64 up to 3, and the continued fraction of erfc
    (7.1.14) beyond, where the series loses digits to cancellation.
    """
    wide = np.abs(x.astype(np.float64))
    small = np.minimum(wide, 3.0)
    term = small.copy()
    series = small.copy()
    for n in range(1, 60):
        term *= -(small**2) / n
        series += term / (2 * n + 1)
    large = np.maximum(wide, 3.0)
    fraction = np.zeros_like(large)
    for n in range(40, 0, -1):
        fraction = (n / 2) / (large + fraction)
    erfc = np.exp(-(large**2)) / (math.sqrt(math.pi) * (large + fraction))
    magnitude = np.where(wide < 3.0, series * (2 / math.sqrt(math.pi)), 1.0 - erfc)
    return np.copysign(magnitude, x).astype(np.float32)


def gelu(x: Float32) -> Float32:
    """Return x * Phi(x), the exact Gaussian error linear unit."""
    return (0.5 * x * (1.0 + _erf(x * np.float32(math.sqrt(0.5))))).astype(np.float32)


def gelu_tanh(x: Float32) -> Float32:
    """Return the tanh approximation of GELU (Hendrycks and Gimpel 2016)."""
    inner = np.float32(math.sqrt(2.0 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1.0) + np.tanh(inner))


_ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh}


class ReferenceOps:
    """The operations of `ops.Ops` in numpy."""

    name = "reference"
    isa = "numpy"

    def quantize(self, weight: Float32, format: QuantFormat) -> QuantizedTensor:
        """See `Ops.quantize`."""
        return quantize(weight, format)

    # Handles -----------------------------------------------------------------------------------------
    def make_parameter(self, tensor: DenseTensor) -> Float32:
        """See `Ops.make_parameter`."""
        return tensor.to_float32()

    def make_linear(self, weight: Weight, bias: DenseTensor | None) -> ReferenceLinear:
        """See `Ops.make_linear`."""
        return ReferenceLinear(weight, None if bias is None else bias.to_float32())

    def make_linear_group(
        self, weights: Sequence[Weight], biases: Sequence[DenseTensor | None]
    ) -> tuple[ReferenceLinear, ...]:
        """See `Ops.make_linear_group`."""
        return tuple(self.make_linear(w, b) for w, b in zip(weights, biases, strict=True))

    def make_embedding(self, weight: StoredWeight) -> StoredWeight:
        """See `Ops.make_embedding`."""
        return weight

    def make_kv_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> KVCache:
        """See `Ops.make_kv_cache`. The memory is reserved here and touched as blocks are written."""
        shape = (num_layers, num_blocks, num_kv_heads, block_size, head_dim)
        return KVCache(np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    def make_fused_decoder(
        self, layers: Sequence[DecoderLayer], final_norm: Float32, head: Any, shape: DecoderShape
    ) -> FusedDecoder | None:
        """See `Ops.make_fused_decoder`: the definition has no second way to decode."""
        return None

    def constant_weight(self, linear: ReferenceLinear) -> Weight | None:
        """See `Ops.constant_weight`: the definition derives nothing."""
        return None

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
        linear: ReferenceLinear,
        activation: Activation | None = None,
        residual: Float32 | None = None,
    ) -> Float32:
        """See `Ops.linear`."""
        weight = linear.weight
        if isinstance(weight, AdaptedTensor):
            y = x @ to_float32(weight.base).T + (x @ weight.down.T) @ weight.up.T
        else:
            y = x @ to_float32(weight).T
        if linear.bias is not None:
            y = y + linear.bias
        if activation is not None:
            y = _ACTIVATIONS[activation](y)
        return y if residual is None else y + residual

    def linear_group(self, x: Float32, group: tuple[ReferenceLinear, ...]) -> tuple[Float32, ...]:
        """See `Ops.linear_group`."""
        return tuple(self.linear(x, linear) for linear in group)

    def embedding(self, token_ids: npt.NDArray[np.integer[Any]], table: StoredWeight) -> Float32:
        """See `Ops.embedding`."""
        if isinstance(table, DenseTensor):
            return DenseTensor(table.data[token_ids], table.format).to_float32()
        return table.dequantize()[token_ids]

    def conv1d(
        self,
        x: Float32,
        linear: ReferenceLinear,
        kernel: int,
        stride: int,
        activation: Activation | None,
        offsets: Offsets,
    ) -> Float32:
        """See `Ops.conv1d`."""
        return self.linear(windows(x, kernel, stride, offsets), linear, activation)

    def rms_norm(self, x: Float32, weight: Float32, eps: float) -> Float32:
        """See `Ops.rms_norm`."""
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight

    def layer_norm(self, x: Float32, weight: Float32, bias: Float32, eps: float) -> Float32:
        """See `Ops.layer_norm`."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        return centred / np.sqrt(variance + np.float32(eps)) * weight + bias

    def rope(self, x: Float32, positions: npt.NDArray[np.int32], theta: float) -> Float32:
        """See `Ops.rope`."""
        half = x.shape[-1] // 2
        frequencies = 1.0 / theta ** (np.arange(half, dtype=np.float32) / np.float32(half))
        angles = positions[:, None].astype(np.float32) * frequencies.astype(np.float32)  # (T, D/2)
        cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def swiglu(self, gate: Float32, up: Float32) -> Float32:
        """See `Ops.swiglu`."""
        # exp of a positive argument can overflow; exp(-|x|) cannot, and both forms are the same sigmoid
        small = np.exp(-np.abs(gate))
        sigmoid = np.where(gate >= 0, 1.0, small) / (1.0 + small)
        return (gate * sigmoid * up).astype(np.float32)

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
        out = np.empty_like(q)
        for b in range(len(query_offsets) - 1):
            rows = slice(query_offsets[b], query_offsets[b + 1])
            keys = slice(key_offsets[b], key_offsets[b + 1])
            out[rows] = _attend(q[rows], k[keys], v[keys], causal)
        return out

    def cached_attention(
        self, q: Float32, k: Float32, v: Float32, cache: KVCache, layer: int, batch: SequenceBatch
    ) -> Float32:
        """See `Ops.cached_attention`."""
        out = np.empty_like(q)
        size = cache.block_size
        keys, values = cache.keys[layer], cache.values[layer]  # (N, K, S, D)
        for b, past in enumerate(batch.num_cached):
            rows = slice(batch.query_offsets[b], batch.query_offsets[b + 1])
            positions = np.arange(past, past + rows.stop - rows.start)
            blocks, slots = batch.block_tables[b][positions // size], positions % size
            keys[blocks, :, slots], values[blocks, :, slots] = k[rows], v[rows]
            total = int(past) + rows.stop - rows.start
            table = batch.block_tables[b][: -(-total // size)]
            past_keys, past_values = (
                np.moveaxis(stored[table], 1, 2).reshape(-1, *k.shape[1:])[:total] for stored in (keys, values)
            )  # (total, K, D)
            out[rows] = _attend(q[rows], past_keys, past_values, causal=True)
        return out


def _attend(q: Float32, k: Float32, v: Float32, causal: bool) -> Float32:
    """Softmax attention of one segment: q (T, H, D), k and v (S, K, D); result (T, H, D)."""
    num_rows, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = k.shape
    out = np.empty_like(q)
    scale = np.float32(1.0 / math.sqrt(head_dim))
    for head in range(num_heads):
        kv_head = head * num_kv_heads // num_heads
        head_keys, head_values = k[:, kv_head].T, v[:, kv_head]
        for start in range(0, num_rows, _QUERY_ROWS):
            stop = min(start + _QUERY_ROWS, num_rows)
            scores = (q[start:stop, head] * scale) @ head_keys  # (rows, S)
            if causal:
                last_key = np.arange(start, stop)[:, None] + (num_keys - num_rows)
                scores = np.where(np.arange(num_keys) > last_key, -np.inf, scores)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[start:stop, head] = (scores / scores.sum(axis=-1, keepdims=True)) @ head_values
    return out


def windows(x: Float32, kernel: int, stride: int, offsets: Offsets) -> Float32:
    """Return the windows (rows, kernel * C) of frames x (F, C) that a convolution sees; see `Ops.conv1d`."""
    pad, seen = (kernel - 1) // 2, []
    for start, stop in itertools.pairwise(offsets):
        padded = np.pad(x[start:stop], ((pad, pad), (0, 0)))
        seen += [padded[i : i + kernel].ravel() for i in range(0, stop - start, stride)]
    return np.stack(seen)
