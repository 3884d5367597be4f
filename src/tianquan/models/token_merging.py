"""Merging the tokens of one slice: those most alike become their mean, until a given number is left.

Tokens at even places each find the most similar token (cosine) at an odd place; the most similar pairs are merged, a
token that several choose becomes the mean of all of them. Repeated where less than half may stay.
Source: Bolya et al. 2023 (Token Merging), without its weights inside the attention: here it follows the encoder.

Legend: Q tokens of a slice, C channels.
"""

from __future__ import annotations

import numpy as np

from tianquan.backends.ops import Array, Ops


def merge_tokens(rows: Array, count: int, ops: Ops) -> Array:
    """Return `count` tokens (count, C) for the tokens (Q, C) of a slice, in their order; all of them if count is Q."""
    assert 1 <= count <= len(rows), (count, len(rows))
    if count == len(rows):
        return rows
    tokens = ops.to_numpy(rows)
    weights = np.ones(len(tokens), np.float32)  # tokens that went into each
    while len(tokens) > count:
        unit = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
        likeness = unit[::2] @ unit[1::2].T  # (even, odd)
        best = likeness.argmax(axis=1)
        leaving = np.argsort(-likeness.max(axis=1), kind="stable")[: len(tokens) - count]
        sums = tokens * weights[:, None]
        targets = 2 * best[leaving] + 1
        np.add.at(sums, targets, sums[2 * leaving])
        np.add.at(weights, targets, weights[2 * leaving])
        stays = np.ones(len(tokens), bool)
        stays[2 * leaving] = False
        tokens, weights = (sums / weights[:, None])[stays], weights[stays]
    return ops.array(tokens)
