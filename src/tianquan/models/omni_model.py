"""The whole model: towers for pictures and sound, and the language model their features flow into.

Legend: T prompt tokens, S image slices, Q tokens of a slice, C channels of the language model.

The towers are loaded on first use: a text-only session never reads or holds them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tianquan.backends.kv_cache import KVCache, SequenceBatch
from tianquan.backends.ops import Array, Ops
from tianquan.config import ModelConfig
from tianquan.models.audio_encoder import AudioEncoder
from tianquan.models.language_model import LanguageModel
from tianquan.models.resampler import Resampler
from tianquan.models.token_merging import merge_tokens
from tianquan.models.vision_encoder import VisionEncoder, segment_offsets
from tianquan.models.weights import WeightSource
from tianquan.processing.image import patchify
from tianquan.request import AudioInput, ImageInput, Prompt


class OmniModel:
    """Encoders, feature placement and the language model of one checkpoint on one backend."""

    def __init__(self, config: ModelConfig, weights: WeightSource, ops: Ops) -> None:
        self.config = config
        self.ops = ops
        self._weights = weights
        self._tower_lock = threading.Lock()
        self._vision: tuple[VisionEncoder, Resampler] | None = None
        self._audio: AudioEncoder | None = None
        self.language_model = LanguageModel(config.language, weights, ops)

    def load_vision(self) -> tuple[VisionEncoder, Resampler]:
        """Return the vision encoder and resampler, loading them on the first call."""
        with self._tower_lock:
            if self._vision is None:
                self._vision = (
                    VisionEncoder(self.config.vision, self._weights, self.ops),
                    Resampler(self.config.resampler, self._weights, self.ops),
                )
            return self._vision

    def load_audio(self) -> AudioEncoder:
        """Return the audio encoder, loading it on the first call."""
        with self._tower_lock:
            if self._audio is None:
                self._audio = AudioEncoder(self.config.audio, self._weights, self.ops)
            return self._audio

    def encode_images(self, images: Sequence[ImageInput]) -> Array:
        """Return features (S, Q, C) of all slices of all pictures, in prompt order; they need not be of one size.

        A slice of several video frames has the mean of their features, query by query.
        """
        encoder, resampler = self.load_vision()
        size = self.config.vision.patch_size
        frames = frames_of(images)
        grids = [(pixels.shape[0] // size, pixels.shape[1] // size) for pixels in frames]
        features = resampler(encoder([patchify(pixels, size) for pixels in frames], grids), grids)
        return self.join_frames(features, images)

    def join_frames(self, features: Array, images: Sequence[ImageInput]) -> Array:
        """Return features (S, Q, C) of slices for those of `frames_of(images)`: the mean where several share tokens."""
        counts = [len(pixels) if pixels.ndim == 4 else 1 for image in images for pixels in image.slices]
        if len(features) == len(counts):
            return features
        ends = segment_offsets(counts).tolist()
        return self.ops.concatenate([features[a:b].mean(0)[None] for a, b in itertools.pairwise(ends)])

    def encode_audios(self, clips: Sequence[AudioInput]) -> list[Array]:
        """Return features (span, C) of each clip."""
        return self.load_audio()(clips)

    def embed(self, prompt: Prompt, image_features: Array | None, audio_features: Sequence[Array]) -> Array:
        """Return the embeddings (T, C) of a prompt, its placeholders overwritten by features.

        Args:
            prompt: token ids and spans.
            image_features: (S, Q, C), or None when the prompt has no picture.
            audio_features: (span, C) per clip.
        """
        hidden = self.language_model.embed(prompt.token_ids)
        for span in prompt.spans:
            if span.kind == "image":
                assert image_features is not None, "a prompt with image spans needs image features"
                rows = merge_tokens(image_features[span.index], span.length, self.ops)
            else:
                rows = audio_features[span.index]
            assert len(rows) == span.length, f"{span}: got {len(rows)} feature rows"
            hidden[span.start : span.start + span.length] = rows
        return hidden

    def forward(self, hidden: Array, cache: KVCache, batch: SequenceBatch, all_rows: bool = False) -> Array:
        """Return logits of the last new token of each sequence, or of every token; see `LanguageModel.forward`."""
        return self.language_model.forward(hidden, cache, batch, "all" if all_rows else "last")


def frames_of(images: Sequence[ImageInput]) -> list[npt.NDArray[np.uint8]]:
    """Return all slices (height, width, 3) that the encoder sees, the frames of a slice of several one by one."""
    slices = [pixels for image in images for pixels in image.slices]
    return [frame for pixels in slices for frame in (pixels if pixels.ndim == 4 else pixels[None])]
