"""The C structs of the kernel library, field by field as in `csrc/layout.h` and `csrc/kernels.h`.

Pointers are plain addresses: whoever fills a struct keeps the arrays alive (see `pointer`).
"""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy.typing as npt

FORMAT_CODES = {"float32": 0, "float16": 1, "bfloat16": 2, "int4": 3, "int8": 4}
ACTIVATION_CODES = {None: 0, "gelu": 1, "gelu_tanh": 2}
MAX_GROUP = 4  # matrices of one call, kMaxGroup in operations.h


def pointer(array: npt.NDArray[Any] | None) -> int | None:
    """Return the address of the first element, or None (a null pointer)."""
    return None if array is None else int(array.__array_interface__["data"][0])


class Matrix(Structure):
    """A weight (out, in) with its optional bias and the factors of an adapter."""

    _fields_ = (
        ("format", c_int32),
        ("group_size", c_int32),
        ("out", c_int64),
        ("in_", c_int64),
        ("values", c_void_p),
        ("scales", c_void_p),
        ("zero_points", c_void_p),
        ("bias", c_void_p),
        ("down", c_void_p),
        ("up", c_void_p),
        ("rank", c_int64),
    )


class Output(Structure):
    """Where a product goes, what is applied to it and added."""

    _fields_ = (
        ("data", c_void_p),
        ("stride", c_int64),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("activation", c_int32),
        ("reserved", c_int32),
    )


class KeyValueStore(Structure):
    """The cache of one layer."""

    _fields_ = (
        ("format", c_int32),
        ("num_kv_heads", c_int32),
        ("block_size", c_int32),
        ("head_dim", c_int32),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
    )


class Batch(Structure):
    """Which rows belong to which sequence."""

    _fields_ = (
        ("num_sequences", c_int64),
        ("query_offsets", c_void_p),
        ("num_cached", c_void_p),
        ("block_tables", c_void_p),
        ("table_stride", c_int64),
    )


class AttentionArguments(Structure):
    """Attention within packed segments."""

    _fields_ = (
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("q_stride", c_int64),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("out", c_void_p),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("causal", c_int32),
        ("num_segments", c_int64),
        ("query_offsets", c_void_p),
        ("key_offsets", c_void_p),
    )


class CachedAttentionArguments(Structure):
    """Attention over the paged cache of one layer."""

    _fields_ = (
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("q_stride", c_int64),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("out", c_void_p),
        ("num_heads", c_int32),
        ("reserved", c_int32),
        ("store", KeyValueStore),
        ("batch", Batch),
    )


class LayerWeights(Structure):
    """One layer of the language model."""

    _fields_ = (
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("query_key_value", Matrix * 3),
        ("attention_output", Matrix),
        ("gate_up", Matrix * 2),
        ("down", Matrix),
    )


class DecoderArguments(Structure):
    """One decode step of the whole language model."""

    _fields_ = (
        ("layers", POINTER(LayerWeights)),
        ("stores", POINTER(KeyValueStore)),
        ("num_layers", c_int64),
        ("final_norm", c_void_p),
        ("head", Matrix),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("rms_norm_eps", c_float),
        ("inverse_frequencies", c_void_p),
        ("hidden", c_void_p),
        ("logits", c_void_p),
        ("batch", Batch),
    )


class QuantizeArguments(Structure):
    """One weight to quantize."""

    _fields_ = (
        ("weight", c_void_p),
        ("importance", c_void_p),
        ("out", c_int64),
        ("in_", c_int64),
        ("bits", c_int32),
        ("group_size", c_int32),
        ("symmetric", c_int32),
        ("num_factors", c_int32),
        ("factors", c_void_p),
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("zero_points", c_void_p),
    )


# Sizes of all structs in the order `tq_struct_sizes` reports them: a build that disagrees is refused.
STRUCTS: tuple[type[Structure], ...] = (
    Matrix,
    Output,
    KeyValueStore,
    Batch,
    AttentionArguments,
    CachedAttentionArguments,
    LayerWeights,
    DecoderArguments,
    QuantizeArguments,
)
