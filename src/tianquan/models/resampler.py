"""Resampler: learned queries attend to the patches of one slice and leave a fixed number of tokens.

Legend: P patches of all slices, S slices, Q queries (64), C channels of the language model, H heads, D head dim.

    x = layer_norm(kv_proj(patches))
    K = x + position(row, col);  V = x;  Q = layer_norm(query)
    tokens = layer_norm(attention(Q, K, V)) @ proj

Source: Perceiver-style resampler of Qwen-VL (Bai et al. 2023) with the 2-D positions of MiniCPM-V 2.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tianquan.backends.ops import Array, Linear, Ops
from tianquan.config import ResamplerConfig
from tianquan.models.folded_resampler import AttentionConstants, FoldedAttention
from tianquan.models.positions import grid_positions
from tianquan.models.vision_encoder import PatchGrid, segment_offsets
from tianquan.models.weights import WeightSource


class Resampler:
    """Patch features of slices to `num_queries` tokens per slice.

    Where the backend's weights are constants the attention is evaluated folded; see `folded_resampler.py`. Training,
    and the backend that defines the operations, run it as it is written here.
    """

    def __init__(self, config: ResamplerConfig, weights: WeightSource, ops: Ops) -> None:
        self.config = config
        self._ops = ops
        size = config.hidden_size
        query = weights.parameter("resampler.query", (config.num_queries, size))
        input = weights.linear("resampler.input", config.vision_size, size)
        input_norm = weights.norm("resampler.input_norm", size)
        query_norm = weights.norm("resampler.query_norm", size)
        projections = {
            part: weights.linear(f"resampler.attention.{part}", size, size, bias=True)
            for part in ("query", "key", "value", "output")
        }
        self._attention_output = projections["output"]
        self._output_norm = weights.norm("resampler.output_norm", size)
        self._output = weights.linear("resampler.output", size, size)
        defined = _DefinedAttention(config, ops, query, query_norm, input, input_norm, projections)
        self._attention = defined.folded() or defined

    def __call__(self, patches: Array, grids: Sequence[PatchGrid]) -> Array:
        """Return tokens (S, Q, C) for the patch features (P, C_vision) of slices with the given grids."""
        ops, config = self._ops, self.config
        x = ops.linear(self._attention(patches, grids), self._attention_output)  # (S * Q, C)
        x = ops.layer_norm(x, *self._output_norm, config.layer_norm_eps)
        return ops.linear(x, self._output).reshape(len(grids), config.num_queries, config.hidden_size)


@dataclass(frozen=True)
class _DefinedAttention:
    """Cross-attention of the queries to the patches, as the module's head defines it."""

    config: ResamplerConfig
    ops: Ops
    query: Array
    query_norm: tuple[Array, Array]
    input: Linear
    input_norm: tuple[Array, Array]
    projections: dict[str, Linear]

    def __call__(self, patches: Array, grids: Sequence[PatchGrid]) -> Array:
        """Return (S * Q, C) for the patch features (P, C_vision) of slices with the given grids."""
        ops, config = self.ops, self.config
        size, heads = config.hidden_size, (-1, config.num_heads, config.head_dim)
        x = ops.layer_norm(ops.linear(patches, self.input), *self.input_norm, config.layer_norm_eps)  # (P, C)
        codes = {grid: grid_positions(*grid, size) for grid in set(grids)}
        positions = ops.array(np.concatenate([codes[grid] for grid in grids]))  # (P, C)
        key = ops.linear(x + positions, self.projections["key"]).reshape(heads)  # (P, H, D)
        value = ops.linear(x, self.projections["value"]).reshape(heads)
        attended = ops.attention(
            ops.concatenate([self._projected_query().reshape(heads)] * len(grids)),  # the same for every slice
            key,
            value,
            segment_offsets([config.num_queries] * len(grids)),
            segment_offsets([rows * cols for rows, cols in grids]),
            causal=False,
        )  # (S * Q, H, D)
        return attended.reshape(-1, size)

    def _projected_query(self) -> Array:
        query = self.ops.layer_norm(self.query, *self.query_norm, self.config.layer_norm_eps)
        return self.ops.linear(query, self.projections["query"])  # (Q, C)

    def folded(self) -> FoldedAttention | None:
        """Return the same attention with its constants folded, None where the backend's weights may change."""
        ops = self.ops
        input, key, value = map(ops.constant_weight, (self.input, self.projections["key"], self.projections["value"]))
        if input is None or key is None or value is None:
            return None
        no_patch = ops.array(np.zeros((1, self.config.hidden_size), np.float32))
        constants = AttentionConstants(
            query=ops.to_numpy(self._projected_query()),
            input=input,
            input_norm=self.input_norm,
            key=key,
            value=value,
            value_bias=ops.to_numpy(ops.linear(no_patch, self.projections["value"]))[0],
        )
        return FoldedAttention(self.config, constants, ops)
