"""The transformer layer that the vision and the audio encoder share: pre-norm attention and MLP over packed segments.

Legend: T rows (patches or frames) of all segments, C channels, H heads, D head dim.

    h = h + output(attention(q, k, v)),   q, k, v = projections of layer_norm(h)
    h = h + down(activation(up(layer_norm(h))))

A row attends within its own segment (slice or clip) only.
"""

from __future__ import annotations

from dataclasses import dataclass

from tianquan.backends.ops import Activation, Array, Offsets, Ops
from tianquan.models.weights import WeightSource


@dataclass(frozen=True, kw_only=True)
class EncoderLayerShape:
    """Sizes of one layer, and the little in which the two encoders differ."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    layer_norm_eps: float
    activation: Activation
    key_bias: bool


class EncoderLayer:
    """One layer; `name` is the prefix of its weights' names."""

    def __init__(self, shape: EncoderLayerShape, weights: WeightSource, name: str, ops: Ops) -> None:
        self._shape = shape
        self._ops = ops
        size = shape.hidden_size
        self._attention_norm = weights.norm(f"{name}.attention_norm", size)
        self._query_key_value = weights.linear_group(
            [f"{name}.attention.{part}" for part in ("query", "key", "value")],
            size,
            [size] * 3,
            [True, shape.key_bias, True],
        )
        self._attention_output = weights.linear(f"{name}.attention.output", size, size, bias=True)
        self._mlp_norm = weights.norm(f"{name}.mlp_norm", size)
        self._up = weights.linear(f"{name}.mlp.up", size, shape.intermediate_size, bias=True)
        self._down = weights.linear(f"{name}.mlp.down", shape.intermediate_size, size, bias=True)

    def __call__(self, hidden: Array, offsets: Offsets) -> Array:
        """Return the layer's output (T, C) for hidden (T, C) of segments that begin at `offsets`."""
        ops, shape = self._ops, self._shape
        head_dim = shape.hidden_size // shape.num_heads
        x = ops.layer_norm(hidden, *self._attention_norm, shape.layer_norm_eps)
        q, k, v = (
            part.reshape(-1, shape.num_heads, head_dim) for part in ops.linear_group(x, self._query_key_value)
        )  # (T, H, D)
        x = ops.attention(q, k, v, offsets, offsets, causal=False)
        hidden = ops.linear(x.reshape(-1, shape.hidden_size), self._attention_output, residual=hidden)
        x = ops.layer_norm(hidden, *self._mlp_norm, shape.layer_norm_eps)
        x = ops.linear(x, self._up, activation=shape.activation)
        return ops.linear(x, self._down, residual=hidden)
