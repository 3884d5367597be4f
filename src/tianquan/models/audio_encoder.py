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

from tianquan.backends.ops import Array, Ops
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
        ops, config = self._ops, self.config
        hidden = ops.concatenate([self._embed(clip) for clip in clips])  # (F, C)
        offsets = segment_offsets([clip.num_frames for clip in clips])
        for layer in self._layers:
            hidden = ops.apply_layer(layer, hidden, offsets)

        pooled = ops.concatenate(
            [
                hidden[start : start + 2 * clip.num_tokens].reshape(clip.num_tokens, 2, -1).mean(1)
                for start, clip in zip(offsets[:-1], clips, strict=True)
            ]
        )  # (tokens of all clips, C): a last odd frame is dropped, as by the original's pooling
        x = ops.layer_norm(pooled, *self._final_norm, config.layer_norm_eps)
        tokens = ops.linear(x, self._projection)
        ends = segment_offsets([clip.num_tokens for clip in clips])
        begin, end = self._begin_end[:1], self._begin_end[1:]
        return [ops.concatenate([begin, tokens[ends[i] : ends[i + 1]], end]) for i in range(len(clips))]

    def _embed(self, clip: AudioInput) -> Array:
        """Return the input (num_frames, C) of the first layer for one clip."""
        ops = self._ops
        x = ops.conv1d(ops.array(clip.mel), self._conv1, _KERNEL, 1, "gelu")
        x = ops.conv1d(x, self._conv2, _KERNEL, 2, "gelu")
        return x[: clip.num_frames] + self._positions[: clip.num_frames]
