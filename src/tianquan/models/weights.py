"""Where the components get their weights from: one small interface, several sources.

A component asks for each of its weights by its own name (`vision.layers.3.mlp.down`); which file and
which foreign name that is, and in which format it ends up, is the source's business. The checkpoint, a
saved low-bit folder and synthetic weights for benchmarks are such sources, and so is the dry run that
lists what a model needs before a byte is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tianquan.backends.ops import Array, Embedding, Linear, LinearGroup


class WeightSource(Protocol):
    """Hands out weights as handles of one backend."""

    def parameter(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return a small dense parameter as float32."""
        ...

    def norm(self, name: str, size: int) -> tuple[Array, Array]:
        """Return weight (size,) and bias (size,) of a layer norm."""
        ...

    def linear(self, name: str, in_features: int, out_features: int, bias: bool = False) -> Linear:
        """Return one matrix with its bias, if it has one."""
        ...

    def linear_group(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], bias: Sequence[bool]
    ) -> LinearGroup:
        """Return several matrices that read the same input."""
        ...

    def embedding(self, name: str, num_rows: int, size: int) -> Embedding:
        """Return a table of rows."""
        ...
