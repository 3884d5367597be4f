"""The operations the model is written in. A backend implements these; the models know nothing else.

Legend: T rows (tokens, patches or frames, packed without padding), C channels, H heads, K kv heads,
D head dim, B sequences.

Every activation that crosses this border is float32. A weight knows its own format: the backend turns a
stored tensor into a handle once (`make_*`), and only that backend looks inside the handle.
`reference.py` is the definition of each operation; the others are tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tianquan.backends.kv_cache import Array as Array
from tianquan.backends.kv_cache import KVCache, SequenceBatch
from tianquan.quantization.adapted import AdaptedTensor
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import QuantFormat, QuantizedTensor

StoredWeight = DenseTensor | QuantizedTensor
Weight = StoredWeight | AdaptedTensor
Activation = Literal["gelu", "gelu_tanh"]  # exact (erf) and the tanh approximation
Offsets = npt.NDArray[np.int32]

Linear = Any  # a backend's handle of one matrix (out, in) and its optional bias
LinearGroup = Any  # a backend's handle of several matrices that read the same input
Embedding = Any  # a backend's handle of a table of rows


@dataclass(frozen=True)
class DecoderLayer:
    """The weights of one layer of the language model, as handles of one backend."""

    attention_norm: Array  # (C,)
    query_key_value: LinearGroup  # C -> H*D, K*D, K*D
    attention_output: Linear  # H*D -> C
    mlp_norm: Array  # (C,)
    gate_up: LinearGroup  # C -> I, I
    down: Linear  # I -> C


@dataclass(frozen=True)
class DecoderShape:
    """The numbers a fused decode step needs besides the weights."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float


class FusedDecoder(Protocol):
    """The whole language model for one new token per sequence, in one call."""

    def __call__(self, hidden: Array, cache: KVCache, batch: SequenceBatch) -> Array:
        """Return logits (B, vocab) for embeddings (B, C); append this step's keys and values to the cache."""
        ...


class Ops(Protocol):
    """What a backend provides. Arrays are float32 and row-major unless a method says otherwise."""

    @property
    def name(self) -> str:
        """The backend's name."""
        ...

    @property
    def isa(self) -> str:
        """The instruction set it runs on, as `info` shows it."""
        ...

    def quantize(self, weight: npt.NDArray[np.float32], format: QuantFormat) -> QuantizedTensor:
        """Return a matrix (out, in) in a low-bit format; every backend gives the same bits."""
        ...

    # Handles -----------------------------------------------------------------------------------------
    def make_parameter(self, tensor: DenseTensor) -> Array:
        """Return a small dense parameter (norm weight, position table, learned query) as float32."""
        ...

    def make_linear(self, weight: Weight, bias: DenseTensor | None) -> Linear:
        """Return a handle of `weight` (out, in) with `bias` (out,)."""
        ...

    def make_linear_group(self, weights: Sequence[Weight], biases: Sequence[DenseTensor | None]) -> LinearGroup:
        """Return one handle of several linears with the same input, which a backend may merge."""
        ...

    def make_embedding(self, weight: StoredWeight) -> Embedding:
        """Return a handle of a table (rows, C). Adapters change products, and a row of a table is none."""
        ...

    def make_kv_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> KVCache:
        """Return an empty cache."""
        ...

    def make_fused_decoder(
        self, layers: Sequence[DecoderLayer], final_norm: Array, head: Linear, shape: DecoderShape
    ) -> FusedDecoder | None:
        """Return the fused decode step, or None when this backend runs it operation by operation."""
        ...

    def constant_weight(self, linear: Linear) -> Weight | None:
        """Return the matrix (out, in) of a handle, from which others may be derived once and for all.

        None where it may change (training), and where the model is to be run as it is written.
        """
        ...

    # Data in and out ----------------------------------------------------------------------------------
    def array(self, data: npt.NDArray[Any]) -> Array:
        """Return host data as a float32 array of this backend."""
        ...

    def to_numpy(self, x: Array) -> npt.NDArray[np.float32]:
        """Return an array of this backend as float32 host data."""
        ...

    def apply_layer(self, layer: Callable[..., Array], hidden: Array, *arguments: Any) -> Array:
        """Return `layer(hidden, *arguments)`. A backend that trains may compute it twice to store less."""
        ...

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Join along the first axis."""
        ...

    # Operations ---------------------------------------------------------------------------------------
    def linear(
        self, x: Array, linear: Linear, activation: Activation | None = None, residual: Array | None = None
    ) -> Array:
        """Return activation(x @ weight.T + bias) + residual for x (T, in); result (T, out)."""
        ...

    def linear_group(self, x: Array, group: LinearGroup) -> tuple[Array, ...]:
        """Return x @ weight.T + bias for each member of the group; results (T, out_i).

        The results may be views with a row stride larger than out_i.
        """
        ...

    def embedding(self, token_ids: npt.NDArray[np.integer[Any]], table: Embedding) -> Array:
        """Return the rows of `table` named by token_ids (T,); result (T, C)."""
        ...

    def conv1d(
        self, x: Array, linear: Linear, kernel: int, stride: int, activation: Activation | None, offsets: Offsets
    ) -> Array:
        """Convolve the frames x (F, C) of packed segments, each with zero padding of (kernel - 1) // 2 on both sides.

        The weight is a linear over flattened windows: (out, kernel * C), kernel-major. A segment of F frames gives
        (F - 1) // stride + 1 rows for odd kernels; the results (rows, out) are packed likewise.
        """
        ...

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Return x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        ...

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """Return (x - mean) / sqrt(variance + eps) * weight + bias over the last axis."""
        ...

    def rope(self, x: Array, positions: npt.NDArray[np.int32], theta: float) -> Array:
        """Rotate pairs (i, i + D/2) of x (T, H, D) by positions * theta^(-2i/D)."""
        ...

    def swiglu(self, gate: Array, up: Array) -> Array:
        """Return silu(gate) * up, (T, I)."""
        ...

    def attention(
        self, q: Array, k: Array, v: Array, query_offsets: Offsets, key_offsets: Offsets, causal: bool
    ) -> Array:
        """Attend within segments: rows of q in segment b see the rows of k and v in segment b only.

        q (T, H, D), k and v (S, K, D), offsets (B + 1,); the scale is 1/sqrt(D). With `causal`, the last
        query row of a segment sees all its keys, the one before one key less, and so on. Result (T, H, D).
        """
        ...

    def cached_attention(self, q: Array, k: Array, v: Array, cache: KVCache, layer: int, batch: SequenceBatch) -> Array:
        """Append k and v (T, K, D) to the cache of `layer`, then attend causally over past and new tokens.

        q (T, H, D); result (T, H, D).
        """
        ...
