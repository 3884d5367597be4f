from __future__ import annotations

import numpy as np
import pytest

from kernels.kernel_tolerances import FLOAT32, KV_FLOAT16, KV_INT8, relative_error
from tianquan.backends.kv_cache import SequenceBatch
from tianquan.backends.native import KVFormat, NativeOps
from tianquan.backends.reference import ReferenceOps
from tianquan.errors import BackendError

RNG = np.random.default_rng(0)
HEADS = [(4, 4), (4, 2), (6, 1), (5, 5)]
TOLERANCES: dict[KVFormat, float] = {"float32": FLOAT32, "float16": KV_FLOAT16, "int8": KV_INT8}


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [5, 16, 64, 72, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_packed_segments(
    native: NativeOps, reference: ReferenceOps, heads: int, kv_heads: int, head_dim: int, causal: bool
) -> None:
    queries = np.array([0, 1, 9, 9, 26, 150], np.int32)  # one of them empty
    keys = np.array([0, 3, 12, 13, 83, 220], np.int32)
    merged = normal(150, (heads + 1) * head_dim)  # queries as a view of a wider projection
    q = merged[:, : heads * head_dim].reshape(150, heads, head_dim)
    k, v = normal(220, kv_heads, head_dim), normal(220, kv_heads, head_dim)
    arguments = (q, k, v, queries, keys, causal)
    assert relative_error(native.attention(*arguments), reference.attention(*arguments)) < FLOAT32


@pytest.mark.parametrize("head_dim", [5, 64, 72, 120, 136])
def test_many_keys(native: NativeOps, reference: ReferenceOps, head_dim: int) -> None:
    """Above 511 keys blocks of them are larger, and widths that are multiples of 24 have a tile of their own."""
    queries, keys = np.array([0, 53, 60, 61], np.int32), np.array([0, 512, 1153, 1664], np.int32)
    q, k, v = normal(61, 3, head_dim), normal(1664, 3, head_dim), normal(1664, 3, head_dim)
    arguments = (q, k, v, queries, keys, False)
    assert relative_error(native.attention(*arguments), reference.attention(*arguments)) < FLOAT32


def test_large_scores_do_not_overflow(native: NativeOps, reference: ReferenceOps) -> None:
    q, k, v = (normal(70, 2, 16) * scale for scale in (100, 100, 1))
    offsets = np.array([0, 70], np.int32)
    arguments = (q, k, v, offsets, offsets, True)
    assert relative_error(native.attention(*arguments), reference.attention(*arguments)) < 1e-4


@pytest.mark.parametrize("kv_format", TOLERANCES)
@pytest.mark.parametrize("head_dim", [5, 64, 72])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_cached_attention(
    native: NativeOps, reference: ReferenceOps, heads: int, kv_heads: int, head_dim: int, kv_format: KVFormat
) -> None:
    ops = NativeOps(native.threads, native.isa, kv_format)
    cache, expected_cache = (o.make_kv_cache(2, 40, kv_heads, 8, head_dim) for o in (ops, reference))
    tables = np.random.default_rng(1).permutation(40).reshape(2, 20).astype(np.int32)
    cached = np.zeros(2, np.int32)
    for lengths in ((70, 33), (1, 1), (5, 1), (1, 1), (1, 7)):
        offsets = np.array([0, lengths[0], sum(lengths)], np.int32)
        batch = SequenceBatch(offsets, cached.copy(), tables)
        q, k, v = (normal(sum(lengths), h, head_dim) for h in (heads, kv_heads, kv_heads))
        got = ops.cached_attention(q, k, v, cache, 1, batch)
        expected = reference.cached_attention(q, k, v, expected_cache, 1, batch)
        assert relative_error(got, expected) < TOLERANCES[kv_format], lengths
        cached += np.array(lengths, np.int32)
    assert not cache.keys[0].any()  # the other layer was left alone


def test_a_wrong_block_number_is_refused(native: NativeOps) -> None:
    cache = native.make_kv_cache(1, 4, 2, 8, 16)
    batch = SequenceBatch(np.array([0, 1], np.int32), np.array([0], np.int32), np.array([[4]], np.int32))
    q = normal(1, 2, 16)
    with pytest.raises(BackendError, match="outside the cache"):
        native.cached_attention(q, q, q, cache, 0, batch)


DAMAGED = np.array(0x7FC00001, np.uint32).view(np.float32)[()]  # a NaN with low bits, as arithmetic makes none


@pytest.mark.parametrize("bad", [np.nan, np.inf, DAMAGED], ids=["nan", "inf", "damaged"])
@pytest.mark.parametrize("where", ["q", "k"])
def test_what_is_not_finite_stays_so(native: NativeOps, bad: np.float32, where: str) -> None:
    """An average of all values would hide an overflow before."""
    q, k, v = normal(20, 2, 16), normal(20, 2, 16), normal(20, 2, 16)
    q[7, 1, 3] = 1.0  # or an infinite key would be one that is not seen
    (q if where == "q" else k)[7, 1, 3] = bad
    offsets = np.array([0, 20], np.int32)
    out = native.attention(q, k, v, offsets, offsets, True)
    assert not np.isfinite(out[7, 1]).any()
    assert np.isfinite(out[:, 0]).all()
    assert np.isfinite(out[:7]).all()


def test_scores_that_are_all_minus_infinity_have_no_softmax(native: NativeOps) -> None:
    """What a row does not see must not take their place."""
    q, k, v = normal(20, 2, 16), normal(20, 2, 16), normal(20, 2, 16)
    q[7, 1, 3], k[:, 1, 3] = np.inf, -np.abs(k[:, 1, 3])
    offsets = np.array([0, 20], np.int32)
    for causal in (False, True):
        out = native.attention(q, k, v, offsets, offsets, causal)
        assert np.isnan(out[7, 1]).all()
        assert np.isfinite(out[:, 0]).all()
    cache = native.make_kv_cache(1, 3, 2, 8, 16)
    tables, row = np.arange(3, dtype=np.int32)[None], np.array([0, 1], np.int32)
    native.cached_attention(
        k, k, v, cache, 0, SequenceBatch(np.array([0, 20], np.int32), np.array([0], np.int32), tables)
    )
    batch = SequenceBatch(row, np.array([20], np.int32), tables)
    out = native.cached_attention(q[7:8], k[7:8], v[7:8], cache, 0, batch)
    assert np.isnan(out[0, 1]).all()
    assert np.isfinite(out[0, 0]).all()


@pytest.mark.parametrize("kv_format", TOLERANCES)
def test_a_query_that_is_not_finite_stays_so(native: NativeOps, kv_format: KVFormat) -> None:
    ops = NativeOps(native.threads, native.isa, kv_format)
    cache = ops.make_kv_cache(1, 4, 2, 8, 16)
    tables = np.arange(4, dtype=np.int32)[None]
    k, v, q = normal(9, 2, 16), normal(9, 2, 16), normal(9, 2, 16)
    ops.cached_attention(q, k, v, cache, 0, SequenceBatch(np.array([0, 9], np.int32), np.array([0], np.int32), tables))
    q = normal(1, 2, 16)
    q[0, 1, 2] = DAMAGED
    batch = SequenceBatch(np.array([0, 1], np.int32), np.array([9], np.int32), tables)
    out = ops.cached_attention(q, k[:1], v[:1], cache, 0, batch)
    assert not np.isfinite(out[0, 1]).any()
    assert np.isfinite(out[0, 0]).all()
