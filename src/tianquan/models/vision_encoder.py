"""SigLIP vision transformer over slices of any size, packed without padding.

Legend: P patches of all slices of a call, C channels, H heads, D head dim.

    x = (pixels - 127.5) / 127.5
    h = patch_projection(x) + position_table[id(row, col)]
    h = h + attention(layer_norm(h));  h = h + mlp(layer_norm(h))      for each layer
    features = layer_norm(h)

A slice attends to itself only. Source: Zhai et al. 2023 (SigLIP); native resolution as in MiniCPM-V 2.6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import Array, Ops
from tianquan.config import VisionConfig
from tianquan.models.encoder_layer import EncoderLayer, EncoderLayerShape
from tianquan.models.weights import WeightSource

PatchGrid = tuple[int, int]  # (rows, columns) of patches of one slice

# The original computed the fractions i/n with vectors of eight floats: each lane is base + lane * step in one
# rounding, and base = step * (8 * j) in another. Ties at bucket borders depend on it (n = 25, 49, 50, 55, ...).
_LANES = 8

# Patches of one pass: enough rows to keep the matrix kernels busy, few enough that the MLP's activations
# (P x 4304 float32) take 18 MB however many slices a request has. From 32 MB on the C library returns every freed
# array to the system, and clearing the pages of the next one took an eighth of the time.
_PATCHES_PER_PASS = 1024


def position_buckets(num_patches: int, num_positions: int) -> npt.NDArray[np.int32]:
    """Return the row (or column) of the position table for each of `num_patches` patches of a side.

    Patch i belongs to the bucket that counts the boundaries j / num_positions (j = 1 ..) not above i / n.
    """
    step = np.float32(1.0 / num_patches)
    index = np.arange(num_patches)
    lane = index % _LANES
    base = step * (index - lane).astype(np.float32)
    fractions = (base.astype(np.float64) + lane * np.float64(step)).astype(np.float32)
    boundaries = (np.arange(1, num_positions) / num_positions).astype(np.float32)
    return np.searchsorted(boundaries, fractions, side="right").astype(np.int32)


def segment_offsets(lengths: Sequence[int]) -> npt.NDArray[np.int32]:
    """Return (len + 1,) offsets of consecutive segments."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


class VisionEncoder:
    """Pixels of slices to one feature vector per patch."""

    def __init__(self, config: VisionConfig, weights: WeightSource, ops: Ops) -> None:
        self.config = config
        self._ops = ops
        self._patch_projection = weights.linear(
            "vision.patch_projection", config.patch_dim, config.hidden_size, bias=True
        )
        self._positions = weights.parameter(
            "vision.position_embedding", (config.num_positions_per_side**2, config.hidden_size)
        )
        shape = EncoderLayerShape(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_heads,
            layer_norm_eps=config.layer_norm_eps,
            activation="gelu_tanh",
            key_bias=True,
        )
        self._layers = [EncoderLayer(shape, weights, f"vision.layers.{n}", ops) for n in range(config.num_layers)]
        self._final_norm = weights.norm("vision.final_norm", config.hidden_size)

    def __call__(self, patches: Sequence[npt.NDArray[np.uint8]], grids: Sequence[PatchGrid]) -> Array:
        """Encode slices.

        Args:
            patches: one (rows * cols, 3 * patch_size^2) array of bytes per slice.
            grids: (rows, cols) of each slice.

        Returns:
            (P, C) features, the slices one after the other.
        """
        features, start = [], 0
        while start < len(grids):
            stop, num_patches = start, 0
            while stop < len(grids) and (stop == start or num_patches + len(patches[stop]) <= _PATCHES_PER_PASS):
                num_patches += len(patches[stop])
                stop += 1
            features.append(self._encode(patches[start:stop], grids[start:stop]))
            start = stop
        return self._ops.concatenate(features)

    def _encode(self, patches: Sequence[npt.NDArray[np.uint8]], grids: Sequence[PatchGrid]) -> Array:
        ops, config = self._ops, self.config
        pixels = (np.concatenate(patches).astype(np.float32) - 127.5) / 127.5
        hidden = ops.linear(
            ops.array(pixels), self._patch_projection, residual=self._positions[self._position_ids(grids)]
        )  # (P, C)
        offsets = segment_offsets([rows * cols for rows, cols in grids])
        for layer in self._layers:
            hidden = ops.apply_layer(layer, hidden, offsets)
        return ops.layer_norm(hidden, *self._final_norm, config.layer_norm_eps)

    def _position_ids(self, grids: Sequence[PatchGrid]) -> npt.NDArray[np.int32]:
        side = self.config.num_positions_per_side
        return np.concatenate(
            [
                (position_buckets(rows, side)[:, None] * side + position_buckets(cols, side)).ravel()
                for rows, cols in grids
            ]
        )
