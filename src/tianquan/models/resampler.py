"""Resampler: learned queries attend to the patches of one slice and leave a fixed number of tokens.

Legend: P patches of all slices, S slices, Q queries (64), C channels of the language model, H heads, D head dim.

    x = layer_norm(kv_proj(patches))
    K = x + position(row, col);  V = x;  Q = layer_norm(query)
    tokens = layer_norm(attention(Q, K, V)) @ proj

Source: Perceiver-style resampler of Qwen-VL (Bai et al. 2023) with the 2-D positions of MiniCPM-V 2.6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import Array, Ops
from tianquan.config import ResamplerConfig
from tianquan.models.vision_encoder import PatchGrid, segment_offsets
from tianquan.models.weights import WeightSource


def sincos_positions(num_positions: int, size: int) -> npt.NDArray[np.float32]:
    """Return (num_positions, size): sines, then cosines, of p * 10000^(-k / (size/2)), in float32."""
    half = size // 2
    frequencies = np.float32(1.0) / np.float32(10000.0) ** (np.arange(half, dtype=np.float32) / np.float32(half))
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def grid_positions(rows: int, cols: int, size: int) -> npt.NDArray[np.float32]:
    """Return (rows * cols, size) position codes: the first half of the channels codes the column."""
    by_row, by_col = sincos_positions(rows, size // 2), sincos_positions(cols, size // 2)
    codes = np.empty((rows, cols, size), np.float32)
    codes[..., : size // 2] = by_col[None, :, :]
    codes[..., size // 2 :] = by_row[:, None, :]
    return codes.reshape(-1, size)


class Resampler:
    """Patch features of slices to `num_queries` tokens per slice."""

    def __init__(self, config: ResamplerConfig, weights: WeightSource, ops: Ops) -> None:
        self.config = config
        self._ops = ops
        size = config.hidden_size
        self._query = weights.parameter("resampler.query", (config.num_queries, size))
        self._input = weights.linear("resampler.input", config.vision_size, size)
        self._input_norm = weights.norm("resampler.input_norm", size)
        self._query_norm = weights.norm("resampler.query_norm", size)
        self._attention = {
            part: weights.linear(f"resampler.attention.{part}", size, size, bias=True)
            for part in ("query", "key", "value", "output")
        }
        self._output_norm = weights.norm("resampler.output_norm", size)
        self._output = weights.linear("resampler.output", size, size)

    def __call__(self, patches: Array, grids: Sequence[PatchGrid]) -> Array:
        """Return tokens (S, Q, C) for the patch features (P, C_vision) of slices with the given grids."""
        ops, config = self._ops, self.config
        size, heads = config.hidden_size, (-1, config.num_heads, config.head_dim)
        x = ops.layer_norm(ops.linear(patches, self._input), *self._input_norm, config.layer_norm_eps)  # (P, C)
        codes = {grid: grid_positions(*grid, size) for grid in set(grids)}
        positions = ops.array(np.concatenate([codes[grid] for grid in grids]))  # (P, C)

        query = ops.layer_norm(self._query, *self._query_norm, config.layer_norm_eps)
        query = ops.linear(query, self._attention["query"]).reshape(heads)  # (Q, H, D), the same for every slice
        key = ops.linear(x + positions, self._attention["key"]).reshape(heads)  # (P, H, D)
        value = ops.linear(x, self._attention["value"]).reshape(heads)
        attended = ops.attention(
            ops.concatenate([query] * len(grids)),
            key,
            value,
            segment_offsets([config.num_queries] * len(grids)),
            segment_offsets([rows * cols for rows, cols in grids]),
            causal=False,
        )  # (S * Q, H, D)
        x = ops.linear(attended.reshape(-1, size), self._attention["output"])
        x = ops.layer_norm(x, *self._output_norm, config.layer_norm_eps)
        return ops.linear(x, self._output).reshape(len(grids), config.num_queries, size)
