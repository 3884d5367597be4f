"""The resampler with its constants folded: the same function, a third of the arithmetic.

The queries do not depend on the picture, so everything between them and the patches is a constant of the checkpoint
and is multiplied once, when the model is loaded. With W the input projection minus the mean of its rows, g and b the
input norm's weight and bias, K and V the key and value projections, and p a patch,

    norm(W_in p) = g * W p / s(p) + b,     s(p) = sqrt(|W p|^2 / C + eps) = sqrt(|R p|^2 / C + eps),    W = QR
    score(q, h, p) = F[q, h] . p / s(p) + E[q, h] . position(row, col),       E = K_h^T query[q, h],  F = (g * E) W
    attended(q, h) = V_h (g * W z + b) + v_h,                                 z = sum over p of weight(p) p / s(p)

What does not depend on p falls out of the softmax. Keys and values of all heads become the patches themselves: an
attention with one key head as wide as the vision encoder, and no projection of patches but the narrow R. The position
term is the sum of a column's and a row's score; patches carry them as one-hot columns beside their channels.

Multiplications per slice of 1024 patches at the official sizes: 5.6 G instead of 18.6 G.

Legend: P patches, S slices, Q queries, C channels of the language model, H heads, D head dim, N channels of a patch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import Array, Linear, Ops, Weight
from tianquan.config import ResamplerConfig
from tianquan.models.positions import sincos_positions
from tianquan.models.vision_encoder import PatchGrid, segment_offsets
from tianquan.quantization.adapted import AdaptedTensor, to_float32
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import INT8_G64, QuantizedTensor

# Slices of one attention call: enough to keep all threads busy, few enough that what is stored on the way (patches
# with their one-hot columns, and z) stays at 70 MB however many slices a request has.
_SLICES_PER_CALL = 4

# Query rows that are given to the attention as one group. It shares work between threads by such groups, up to 384 rows
# at a time: 320 cut the official 64 x 20 rows into four equal parts, groups of 20 into parts of 380, 380, 380 and 140.
_ROWS_OF_A_KEY_HEAD = 320

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AttentionConstants:
    """What the attention of a resampler is made of, before it is folded. Matrices are (out, in)."""

    query: Float32  # (Q, C), normed and projected
    input: Weight  # (C, N)
    input_norm: tuple[Float32, Float32]  # weight and bias (C,)
    key: Weight  # (C, C); its bias adds the same to all scores of a query
    value: Weight  # (C, C)
    value_bias: Float32  # (C,)


class FoldedAttention:
    """Patches of slices to what the queries attend to.

    The folded matrices are kept in float32 where the checkpoint's are dense, in int8 where they are low-bit; the
    queries always in float32. Together they take less memory than the four matrices they replace.
    """

    def __init__(self, config: ResamplerConfig, constants: AttentionConstants, ops: Ops) -> None:
        self._config = config
        self._ops = ops
        size, heads, head_dim = config.hidden_size, config.num_heads, config.head_dim
        projection = to_float32(constants.input)
        projection = projection - projection.mean(axis=0)  # (C, N)
        scale, shift = constants.input_norm
        self._deviation = _keep(np.linalg.qr(projection, mode="r") / np.float32(size**0.5), constants.input, None, ops)

        query = constants.query.reshape(-1, heads, head_dim)  # (Q, H, D)
        key = to_float32(constants.key).reshape(heads, head_dim, size)
        effect = np.einsum("qhd,hdc->qhc", query, key, optimize=True) / np.float32(head_dim**0.5)  # E, (Q, H, C)
        self._effect = effect.reshape(-1, size)  # (Q * H, C)
        projection = scale[:, None] * projection
        self._query = self._effect @ projection  # F, (Q * H, N)

        value = to_float32(constants.value)
        folded = value @ projection  # (C, N)
        bias = value @ shift + constants.value_bias
        self._values = [
            _keep(folded[start : start + head_dim], constants.value, bias[start : start + head_dim], ops)
            for start in range(0, size, head_dim)
        ]
        self._position_scores = np.zeros((2, len(self._effect), 0), np.float32)

    def __call__(self, patches: Array, grids: Sequence[PatchGrid]) -> Array:
        """Return (S * Q, C) for the patch features (P, N) of slices with the given grids."""
        attended, first = [], 0
        for grid, same in itertools.groupby(grids):
            left = len(list(same))
            while left:
                count = min(left, _SLICES_PER_CALL)
                rows = patches[first : first + count * grid[0] * grid[1]]
                attended.append(self._attend(rows, grid, count))
                first += len(rows)
                left -= count
        return self._ops.concatenate(attended)

    def _attend(self, patches: Array, grid: PatchGrid, num_slices: int) -> Array:
        """Return (S * Q, C) for slices of one grid."""
        ops, (rows, cols), width = self._ops, grid, patches.shape[1]
        deviation = ops.to_numpy(ops.linear(patches, self._deviation))
        s = np.sqrt(np.einsum("pc,pc->p", deviation, deviation) + np.float32(self._config.layer_norm_eps))
        keys = np.empty((num_slices, rows, cols, width + cols + rows), np.float32)
        np.divide(
            ops.to_numpy(patches).reshape(*keys.shape[:3], width),
            s.reshape(*keys.shape[:3], 1),
            out=keys[..., :width],
        )
        keys[..., width : width + cols] = np.eye(cols, dtype=np.float32)
        keys[..., width + cols :] = np.eye(rows, dtype=np.float32)[:, None]

        num_rows, by_position = len(self._query), self._scores_of_positions(max(rows, cols))
        queries = np.empty((num_slices, num_rows, keys.shape[-1]), np.float32)  # (S, Q * H, N + cols + rows)
        scale = np.float32(keys.shape[-1] ** 0.5)  # the operation divides by it; E has the scale of a head
        np.multiply(self._query, scale, out=queries[..., :width])
        np.multiply(by_position[0, :, :cols], scale, out=queries[..., width : width + cols])
        np.multiply(by_position[1, :, :rows], scale, out=queries[..., width + cols :])

        packed = ops.array(keys.reshape(-1, 1, keys.shape[-1]))  # (P, 1, N + cols + rows)
        group = math.gcd(num_rows, _ROWS_OF_A_KEY_HEAD)
        pooled = ops.attention(
            ops.array(queries.reshape(-1, group, keys.shape[-1])),
            packed,
            packed,
            segment_offsets([num_rows // group] * num_slices),
            segment_offsets([rows * cols] * num_slices),
            causal=False,
        )
        shape = (-1, self._config.num_heads, keys.shape[-1])
        pooled = ops.to_numpy(pooled).reshape(shape)[..., :width]  # z, (S * Q, H, N)
        heads = [ops.to_numpy(ops.linear(ops.array(pooled[:, h]), value)) for h, value in enumerate(self._values)]
        return ops.array(np.concatenate(heads, axis=1))

    def _scores_of_positions(self, count: int) -> Float32:
        """Return scores (2, Q * H, >= count) of columns and of rows 0 .. count - 1; the table grows on demand."""
        if self._position_scores.shape[2] < count:
            half = self._effect.shape[1] // 2
            codes = sincos_positions(count, half).T  # (C / 2, count)
            self._position_scores = np.stack([self._effect[:, :half] @ codes, self._effect[:, half:] @ codes])
        return self._position_scores


def _keep(matrix: Float32, like: Weight, bias: Float32 | None, ops: Ops) -> Linear:
    """Return a handle of a folded matrix in the format that stands in for that of `like`."""
    dense = np.ascontiguousarray(matrix, np.float32)
    stored: Weight = DenseTensor(dense, "float32")
    if isinstance(like.base if isinstance(like, AdaptedTensor) else like, QuantizedTensor):
        stored = ops.quantize(dense, INT8_G64)
    return ops.make_linear(stored, None if bias is None else DenseTensor(np.ascontiguousarray(bias), "float32"))
