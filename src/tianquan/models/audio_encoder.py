"""Whisper-type audio encoder with average pooling by two and a projection to the language model.

Legend: F frames of all clips of a call (50 a second), C channels, H heads, D head dim.

    h = gelu(conv(gelu(conv(mel)), stride 2)) + position_table[: F]
    h = h + attention(layer_norm(h));  h = h + mlp(layer_norm(h))      for each layer
    features = [begin, projection(layer_norm(mean of frame pairs)), end]

Clips are packed without padding. In the original they are padded to the longest clip of the call, and all
that a shorter clip's own frames can see of that padding is the one mel frame after its last: `AudioInput.mel`
carries that frame. Source: Radford et al. 2022 (Whisper); pooling and begin/end rows as in Qwen-Audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import Array, Offsets, Ops
from tianquan.config import AudioConfig
from tianquan.models.encoder_layer import EncoderLayer, EncoderLayerShape
from tianquan.models.vision_encoder import segment_offsets
from tianquan.models.weights import WeightSource
from tianquan.request import AudioInput

_KERNEL = 3  # frames of both convolutions


class AudioEncoder:
    """Mel spectrograms of clips to embeddings of the language model."""

    def __init__(self, config: AudioConfig, weights: WeightSource, ops: Ops) -> None:
        self.config = config
        self._ops = ops
        size = config.hidden_size
        self._conv1 = weights.linear("audio.conv1", _KERNEL * config.num_mels, size, bias=True)
        self._conv2 = weights.linear("audio.conv2", _KERNEL * size, size, bias=True)
        # Loaded, never computed: the trained table is not the sinusoid formula.
        self._positions = weights.parameter("audio.position_embedding", (config.max_frames, size))
        shape = EncoderLayerShape(
            hidden_size=size,
            intermediate_size=4 * size,
            num_heads=config.num_heads,
            layer_norm_eps=config.layer_norm_eps,
            activation="gelu",
            key_bias=False,  # Whisper has none: softmax would cancel it
        )
        self._layers = [EncoderLayer(shape, weights, f"audio.layers.{n}", ops) for n in range(config.num_layers)]
        self._final_norm = weights.norm("audio.final_norm", size)
        self._projection = weights.linear("audio.projection", size, config.output_size, bias=True)
        self._begin_end = weights.parameter("audio.begin_end", (2, config.output_size))

    def __call__(self, clips: Sequence[AudioInput]) -> list[Array]:
        """Return one (span, C_language) array per clip: begin, its tokens, end."""
        packed = self.encode(clips)
        ends = segment_offsets([clip.span for clip in clips])
        return [packed[start:stop] for start, stop in pairwise(ends)]

    def encode(self, clips: Sequence[AudioInput]) -> Array:
        """Return the rows of all clips one after the other, (spans of all clips, C_language)."""
        ops, config = self._ops, self.config
        hidden = self._embed(clips)  # (F, C)
        offsets = segment_offsets([clip.num_frames for clip in clips])
        for layer in self._layers:
            hidden = ops.apply_layer(layer, hidden, offsets)

        paired = _segment_rows(offsets, [2 * clip.num_tokens for clip in clips])  # a last odd frame is dropped
        pooled = hidden[paired].reshape(len(paired) // 2, 2, -1).mean(1)  # (tokens of all clips, C)
        x = ops.layer_norm(pooled, *self._final_norm, config.layer_norm_eps)
        rows = ops.concatenate([self._begin_end, ops.linear(x, self._projection)])  # begin, end, all tokens
        starts = 2 + segment_offsets([clip.num_tokens for clip in clips])
        return rows[np.concatenate([[0, *range(starts[i], starts[i + 1]), 1] for i in range(len(clips))])]

    def _embed(self, clips: Sequence[AudioInput]) -> Array:
        """Return the input (F, C) of the first layer."""
        ops = self._ops
        num_mel_frames = [len(clip.mel) for clip in clips]
        num_frames = [clip.num_frames for clip in clips]
        mel = ops.array(np.concatenate([clip.mel for clip in clips]))
        x = ops.conv1d(mel, self._conv1, _KERNEL, 1, "gelu", segment_offsets(num_mel_frames))
        x = ops.conv1d(x, self._conv2, _KERNEL, 2, "gelu", segment_offsets(num_mel_frames))
        halves = segment_offsets([-(-length // 2) for length in num_mel_frames])
        positions = np.concatenate([np.arange(length) for length in num_frames])
        return x[_segment_rows(halves, num_frames)] + self._positions[positions]


def _segment_rows(offsets: Offsets, lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the numbers of the first `lengths` rows of each segment."""
    return np.concatenate(
        [np.arange(start, start + length) for start, length in zip(offsets[:-1], lengths, strict=True)]
    )
