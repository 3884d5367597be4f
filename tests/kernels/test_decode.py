"""The fused decode step is the same computation as the operations one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kernels.kernel_tolerances import FLOAT32, relative_error
from tianquan.backends.kv_cache import KVCache, SequenceBatch
from tianquan.backends.native import NativeOps
from tianquan.backends.ops import DecoderLayer, DecoderShape, Weight
from tianquan.quantization.adapted import AdaptedTensor
from tianquan.quantization.dense import DENSE_FORMATS, DenseTensor
from tianquan.quantization.format import FORMATS
from tianquan.quantization.quantizers import quantize

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB, LAYERS = 72, 6, 2, 10, 100, 61, 2
SHAPE = DecoderShape(HEADS, KV_HEADS, HEAD_DIM, 1e-5, 5e6)


def random_decoder(
    ops: NativeOps, make: Callable[[np.ndarray], Weight]
) -> tuple[list[DecoderLayer], np.ndarray, object]:
    rng = np.random.default_rng(0)

    def weight(out: int, in_: int) -> Weight:
        return make(rng.standard_normal((out, in_), dtype=np.float32) / np.sqrt(np.float32(in_)))

    layers = [
        DecoderLayer(
            rng.random(HIDDEN, np.float32) + 0.5,
            ops.make_linear_group([weight(n * HEAD_DIM, HIDDEN) for n in (HEADS, KV_HEADS, KV_HEADS)], [None] * 3),
            ops.make_linear(weight(HIDDEN, HEADS * HEAD_DIM), None),
            rng.random(HIDDEN, np.float32) + 0.5,
            ops.make_linear_group([weight(INTERMEDIATE, HIDDEN) for _ in range(2)], [None] * 2),
            ops.make_linear(weight(HIDDEN, INTERMEDIATE), None),
        )
        for _ in range(LAYERS)
    ]
    return layers, rng.random(HIDDEN, np.float32) + 0.5, ops.make_linear(weight(VOCAB, HIDDEN), None)


def step_by_step(
    ops: NativeOps,
    layers: list[DecoderLayer],
    norm: np.ndarray,
    head: object,
    hidden: np.ndarray,
    cache: KVCache,
    batch: SequenceBatch,
) -> np.ndarray:
    rows = len(hidden)
    for index, layer in enumerate(layers):
        normed = ops.rms_norm(hidden, layer.attention_norm, SHAPE.rms_norm_eps)
        q, k, v = (x.reshape(rows, -1, HEAD_DIM) for x in ops.linear_group(normed, layer.query_key_value))
        q, k = (ops.rope(x, batch.positions(), SHAPE.rope_theta) for x in (q, k))
        attended = ops.cached_attention(q, k, v, cache, index, batch).reshape(rows, -1)
        hidden = ops.linear(attended, layer.attention_output, residual=hidden)
        normed = ops.rms_norm(hidden, layer.mlp_norm, SHAPE.rms_norm_eps)
        hidden = ops.linear(ops.swiglu(*ops.linear_group(normed, layer.gate_up)), layer.down, residual=hidden)
    return ops.linear(ops.rms_norm(hidden, norm, SHAPE.rms_norm_eps), head)


@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.parametrize("name", [*FORMATS, *DENSE_FORMATS])
def test_fused_decode_is_the_operations_one_by_one(native: NativeOps, name: str, rank: int) -> None:
    factors = np.random.default_rng(2)

    def make(values: np.ndarray) -> Weight:
        weight = quantize(values, FORMATS[name]) if name in FORMATS else DenseTensor(values, "float32").cast(name)
        if rank == 0:
            return weight
        out, in_ = values.shape
        down, up = (factors.standard_normal(shape, dtype=np.float32) / 10 for shape in ((rank, in_), (out, rank)))
        return AdaptedTensor(weight, down, up)

    layers, norm, head = random_decoder(native, make)
    decoder = native.make_fused_decoder(layers, norm, head, SHAPE)
    rng = np.random.default_rng(1)
    for size in (1, 2, 5, 14):
        caches = [native.make_kv_cache(LAYERS, size * 3, KV_HEADS, 8, HEAD_DIM) for _ in range(2)]
        tables = rng.permutation(size * 3).reshape(size, 3).astype(np.int32)
        for cached in range(10):  # over the border of a block
            batch = SequenceBatch(np.arange(size + 1, dtype=np.int32), np.full(size, cached, np.int32), tables)
            hidden = rng.standard_normal((size, HIDDEN), dtype=np.float32)
            before = hidden.copy()
            got = decoder(hidden, caches[0], batch)
            expected = step_by_step(native, layers, norm, head, hidden, caches[1], batch)
            assert relative_error(got, expected) < FLOAT32
            assert np.array_equal(hidden, before)
        assert np.array_equal(caches[0].keys, caches[1].keys)
