"""Running the model for one step: features of media, embeddings of chunks, batches over block tables.

Legend: T new tokens of a call, B sequences, C channels, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from tianquan.backends.kv_cache import KVCache, SequenceBatch
from tianquan.backends.ops import Array
from tianquan.engine.encoder_cache import EncoderCache, EncoderKey
from tianquan.engine.memory import give_back_freed_memory
from tianquan.engine.prefix_cache import Namespace
from tianquan.engine.scheduler import BlockCopy
from tianquan.engine.sequence import Sequence
from tianquan.models.omni_model import OmniModel
from tianquan.models.token_merging import merge_tokens
from tianquan.request import FeatureSpan, Prompt

_SLICES_OF_A_PASS = 4  # 4,096 patches of the official model fill the kernels; activations grow with more


@dataclass
class MediaFeatures:
    """The features one request still needs, held until its prompt is computed, and what making them took."""

    prompt: Prompt
    namespace: Namespace
    rows: dict[int, Array] = field(default_factory=dict)  # by position in prompt.spans; each (length, C)
    vision_ms: float = 0.0
    audio_ms: float = 0.0

    def missing(self, start: int, stop: int) -> list[int]:
        """Return which spans that reach into prompt tokens start..stop have no features yet."""
        return [
            n
            for n, span in enumerate(self.prompt.spans)
            if n not in self.rows and span.start < stop and span.start + span.length > start
        ]


class ModelRunner:
    """The model, its KV cache and its encoder cache.

    Args:
        model: the model.
        cache: keys and values of all sequences.
        encoder_cache: features by digest.
    """

    def __init__(self, model: OmniModel, cache: KVCache, encoder_cache: EncoderCache) -> None:
        self.model = model
        self.cache = cache
        self.encoder_cache = encoder_cache

    def copy_blocks(self, copies: Iterable[BlockCopy]) -> None:
        """Carry out the copies of a plan, in order."""
        for copy in copies:
            self.cache.copy_block(copy.source, copy.target, copy.num_tokens)

    # Media ------------------------------------------------------------------------------------------------
    def encode(self, media: MediaFeatures, start: int, stop: int, max_units: int | None) -> bool:
        """Make the features that prompt tokens start..stop need.

        Args:
            media: where they go.
            start: first token of the prompt.
            stop: behind the last one.
            max_units: most slices or clips to encode now; None for all.

        Returns:
            Whether all of them are there.
        """
        wanted: list[int] = []
        is_all = True
        for n in media.missing(start, stop):
            if max_units is not None and len(wanted) == max_units:  # the rest is looked up when its turn comes
                is_all = False
                break
            known = self.encoder_cache.find(self._key(media, media.prompt.spans[n]))
            if known is None:
                wanted.append(n)
            else:
                media.rows[n] = known
        spans = media.prompt.spans
        self._encode_slices(media, [n for n in wanted if spans[n].kind == "image"])
        self._encode_clips(media, [n for n in wanted if spans[n].kind == "audio"])
        return is_all

    def _key(self, media: MediaFeatures, span: FeatureSpan) -> EncoderKey:
        if span.kind == "audio":
            return (media.namespace, "audio", media.prompt.audios[span.index].digest, 0)
        image, number = _find_slice(media.prompt, span.index)
        return (media.namespace, "image", media.prompt.images[image].digest, number)

    def _encode_slices(self, media: MediaFeatures, numbers: ListOf[int]) -> None:
        """Encode the slices of these spans in a few packed passes; equal ones once."""
        if not numbers:
            return
        began = time.perf_counter()
        prompt, spans = media.prompt, media.prompt.spans
        by_key = {self._key(media, spans[n]): _find_slice(prompt, spans[n].index) for n in numbers}
        lengths = {self._key(media, spans[n]): spans[n].length for n in numbers}
        features: dict[EncoderKey, Array] = {}
        for start in range(0, len(by_key), _SLICES_OF_A_PASS):
            keys = list(by_key)[start : start + _SLICES_OF_A_PASS]
            slices = [(prompt.images[i], s) for i, s in (by_key[key] for key in keys)]
            inputs = [replace(image, slices=(image.slices[s],)) for image, s in slices]
            for key, rows in zip(keys, self.model.encode_images(inputs), strict=True):  # (S, Q, C)
                # a copy: a view would keep the features of the whole call alive, and the cache counts bytes
                features[key] = self.model.ops.concatenate([merge_tokens(rows, lengths[key], self.model.ops)])
                self.encoder_cache.add(key, features[key])
        for n in numbers:
            media.rows[n] = features[self._key(media, spans[n])]
        if len(by_key) > _SLICES_OF_A_PASS:
            give_back_freed_memory()
        media.vision_ms += 1000 * (time.perf_counter() - began)

    def _encode_clips(self, media: MediaFeatures, numbers: ListOf[int]) -> None:
        if not numbers:
            return
        began = time.perf_counter()
        prompt, spans = media.prompt, media.prompt.spans
        by_key = {self._key(media, spans[n]): prompt.audios[spans[n].index] for n in numbers}
        encoded = self.model.encode_audios(list(by_key.values()))
        # copies, as of slices: views would keep the features of the whole call
        features = {key: self.model.ops.concatenate([rows]) for key, rows in zip(by_key, encoded, strict=True)}
        for key, rows in features.items():
            self.encoder_cache.add(key, rows)
        for n in numbers:
            media.rows[n] = features[self._key(media, spans[n])]
        media.audio_ms += 1000 * (time.perf_counter() - began)

    # Language model ---------------------------------------------------------------------------------------
    def prefill(self, chunks: ListOf[tuple[Sequence, int, MediaFeatures]]) -> npt.NDArray[np.float32]:
        """Compute the next tokens of prompts.

        Args:
            chunks: sequences, how many tokens each, and the features of their media.

        Returns:
            Logits (B, V) of the last token of each chunk.
        """
        hidden = self.model.ops.concatenate([self._embed_chunk(*chunk) for chunk in chunks])  # (T, C)
        counts = [num_tokens for _, num_tokens, _ in chunks]
        past = [sequence.num_computed for sequence, _, _ in chunks]
        tables = [sequence.block_table for sequence, _, _ in chunks]
        return self.model.ops.to_numpy(self.model.forward(hidden, self.cache, _batch(counts, past, tables)))

    def _embed_chunk(self, sequence: Sequence, num_tokens: int, media: MediaFeatures) -> Array:
        start = sequence.num_computed
        stop = start + num_tokens
        hidden = self.model.language_model.embed(np.array(sequence.token_ids[start:stop], np.int32))
        for n, span in enumerate(media.prompt.spans):
            first, last = max(span.start, start), min(span.start + span.length, stop)
            if first < last:
                rows = media.rows[n]
                assert len(rows) == span.length, f"{span}: got {len(rows)} feature rows"
                hidden[first - start : last - start] = rows[first - span.start : last - span.start]
        return hidden

    def decode(self, sequences: ListOf[Sequence]) -> npt.NDArray[np.float32]:
        """Compute the last token of each sequence and its draft, all in one call of the fused decode step.

        A draft of k tokens is k more rows with the same block table, each seeing one token more: keys and
        values of all rows are appended before any row attends.

        Returns:
            Logits (rows, V); the rows of a sequence follow one another.
        """
        token_ids: list[int] = []
        past: list[int] = []
        tables: list[list[int]] = []
        for sequence in sequences:
            rows = [sequence.token_ids[-1], *sequence.draft]
            token_ids += rows
            past += range(sequence.num_computed, sequence.num_computed + len(rows))
            tables += [sequence.block_table] * len(rows)
        hidden = self.model.language_model.embed(np.array(token_ids, np.int32))
        batch = _batch([1] * len(token_ids), past, tables)
        return self.model.ops.to_numpy(self.model.forward(hidden, self.cache, batch))


def _batch(counts: ListOf[int], past: ListOf[int], tables: ListOf[ListOf[int]]) -> SequenceBatch:
    padded = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return SequenceBatch(np.cumsum([0, *counts]).astype(np.int32), np.array(past, np.int32), padded)


def _find_slice(prompt: Prompt, index: int) -> tuple[int, int]:
    """Return which picture a slice of the whole prompt belongs to, and its number there."""
    for n, image in enumerate(prompt.images):
        if index < len(image.slices):
            return n, index
        index -= len(image.slices)
    raise AssertionError("a span names a slice the prompt does not have")
