"""The generation loop for one prompt: prefill in chunks, then one token per step.

The loop sees token ids, features and spans; text is made elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tianquan.backends.kv_cache import KVCache, SequenceBatch
from tianquan.backends.ops import Array
from tianquan.engine.sampler import sample
from tianquan.errors import ModelError, PromptError
from tianquan.models.omni_model import OmniModel
from tianquan.request import Prompt, SamplingParams

_PREFILL_CHUNK = 512  # tokens: enough rows for full kernel speed, bounded activations for any prompt length


@dataclass
class StageClock:
    """Milliseconds spent in each stage, filled in as they end."""

    started: float = field(default_factory=time.perf_counter)
    vision_ms: float = 0.0
    audio_ms: float = 0.0
    prefill_ms: float = 0.0
    ttft_ms: float = 0.0
    decode_ms: float = 0.0


def sequence_batch(num_new: int, num_cached: int, cache: KVCache) -> SequenceBatch:
    """Return the batch of one sequence that owns all blocks of its cache."""
    return SequenceBatch(
        np.array([0, num_new], np.int32),
        np.array([num_cached], np.int32),
        np.arange(cache.num_blocks, dtype=np.int32)[None],
    )


def encode_prompt(model: OmniModel, prompt: Prompt, clock: StageClock) -> Array:
    """Return the embeddings (T, C) of a prompt with the features of its media in place."""
    start = time.perf_counter()
    image_features = model.encode_images(prompt.images) if prompt.images else None
    vision_done = time.perf_counter()
    audio_features = model.encode_audios(prompt.audios) if prompt.audios else []
    audio_done = time.perf_counter()
    clock.vision_ms = 1000 * (vision_done - start)
    clock.audio_ms = 1000 * (audio_done - vision_done)
    return model.embed(prompt, image_features, audio_features)


def answer_budget(prompt: Prompt, params: SamplingParams, max_position_embeddings: int) -> int:
    """Return how many tokens the answer may have.

    Raises:
        PromptError: the prompt leaves no room in the context window.
    """
    room = max_position_embeddings - len(prompt.token_ids)
    if room < 1:
        raise PromptError(
            f"the prompt has {len(prompt.token_ids)} tokens ({prompt.num_image_tokens} of pictures, "
            f"{prompt.num_audio_tokens} of sound), the context window {max_position_embeddings}; shorten it, or "
            "limit max_slices or max_image_tokens"
        )
    return min(params.max_tokens, room)


def generate_token_ids(
    model: OmniModel,
    prompt: Prompt,
    params: SamplingParams,
    stop_token_ids: frozenset[int],
    clock: StageClock | None = None,
) -> Iterator[int]:
    """Yield the token ids of an answer as they are chosen, the one that ends it included.

    Args:
        model: the model.
        prompt: what to answer.
        params: checked by `sampler.check_params`.
        stop_token_ids: ids that end the answer.
        clock: filled in as stages end.

    Raises:
        PromptError: the prompt does not fit the context window.
        ModelError: the model gave NaN logits.
    """
    budget = answer_budget(prompt, params, model.config.language.max_position_embeddings)
    clock = clock or StageClock()
    generator = np.random.Generator(np.random.PCG64(params.seed))
    hidden = encode_prompt(model, prompt, clock)
    past = prompt.token_ids.tolist()
    cache = model.language_model.make_kv_cache(len(past) + budget)

    start = time.perf_counter()
    logits = np.empty(0, np.float32)
    for first in range(0, len(past), _PREFILL_CHUNK):
        chunk = hidden[first : first + _PREFILL_CHUNK]
        logits = model.ops.to_numpy(model.forward(chunk, cache, sequence_batch(len(chunk), first, cache)))[-1]
    now = time.perf_counter()
    clock.prefill_ms = 1000 * (now - start)
    clock.ttft_ms = 1000 * (now - clock.started)

    for n in range(budget):
        if not np.isfinite(logits).all():
            raise ModelError("the model's output is not finite; its weights are damaged, verify or download them again")
        token_id = sample(logits, params, past, generator)
        past.append(token_id)
        clock.decode_ms = 1000 * (time.perf_counter() - now)
        yield token_id
        if token_id in stop_token_ids or n + 1 == budget:
            return
        hidden = model.language_model.embed(np.array([token_id], np.int32))
        logits = model.ops.to_numpy(model.forward(hidden, cache, sequence_batch(1, len(past) - 1, cache)))[0]
