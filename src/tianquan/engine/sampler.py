"""Choosing the next token: pure functions of logits, parameters, past tokens and a random number generator.

Order, as in Hugging Face transformers: repetition penalty, presence and frequency penalties, bias, what is
forbidden, temperature, top-k, top-p, min-p, draw.
Source: Keskar et al. 2019 (repetition penalty), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p);
presence and frequency penalties as in OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tianquan.request import SamplingParams, TokenLogprob

Float32 = npt.NDArray[np.float32]


def sample(
    logits: Float32,
    params: SamplingParams,
    past_token_ids: Sequence[int],
    generator: np.random.Generator,
    num_prompt: int = 0,
    forbidden: frozenset[int] = frozenset(),
    allowed: npt.NDArray[np.bool_] | None = None,
) -> int:
    """Return the next token id.

    Args:
        logits: (vocab,), not changed.
        params: how to choose.
        past_token_ids: prompt and answer so far, for the penalties.
        generator: consumed by exactly one draw per sampled token, by none when greedy.
        num_prompt: how many of the past tokens are the prompt's.
        forbidden: ids that must not come now, beside those of `allowed`.
        allowed: (vocab,) which ids may come at all; at least one may.
    """
    logits = _adjust(logits, params, past_token_ids, num_prompt)
    if forbidden or allowed is not None:
        logits = logits.copy()
        logits[list(forbidden)] = -np.inf
        if allowed is not None:
            logits[~allowed] = -np.inf
    if params.temperature == 0:
        return int(logits.argmax())
    token_ids, probabilities = _candidates(logits, params)
    cumulative = probabilities.cumsum()
    draw = generator.random() * cumulative[-1]
    return int(token_ids[min(np.searchsorted(cumulative, draw, side="right"), len(token_ids) - 1)])


def token_logprob(logits: Float32, token_id: int, num_top: int) -> TokenLogprob:
    """Return the log-probability of a token and of the `num_top` likeliest, from logits (vocab,)."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    num_top = min(num_top, len(wide))
    best = np.argpartition(-wide, num_top - 1)[:num_top] if num_top else np.empty(0, np.int64)
    best = best[np.lexsort((best, -wide[best]))]
    top = tuple((int(id), float(wide[id])) for id in best)
    return TokenLogprob(token_id, float(wide[token_id]), top)


def _adjust(logits: Float32, params: SamplingParams, past_token_ids: Sequence[int], num_prompt: int) -> Float32:
    """Return the logits after penalties and bias; the same array when there are none."""
    penalizes_answer = params.presence_penalty != 0 or params.frequency_penalty != 0
    if params.repetition_penalty == 1.0 and not penalizes_answer and not params.logit_bias:
        return logits
    logits = logits.copy()
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.fromiter(past_token_ids, np.int64, len(past_token_ids)))
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if penalizes_answer:
        answer = np.asarray(past_token_ids[num_prompt:], np.int64)
        seen, counts = np.unique(answer, return_counts=True)
        logits[seen] -= np.float32(params.presence_penalty) + counts.astype(np.float32) * params.frequency_penalty
    for token_id, bias in params.logit_bias:
        logits[token_id] += np.float32(bias)
    return logits


def _candidates(logits: Float32, params: SamplingParams) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the token ids that may be drawn, most likely first, and their unnormalised probabilities."""
    size = len(logits) if params.top_k == 0 else min(params.top_k, len(logits))
    token_ids = np.argpartition(-logits, size - 1)[:size] if size < len(logits) else np.arange(len(logits))
    token_ids = token_ids[np.lexsort((token_ids, -logits[token_ids]))]  # ties by id: the same draw everywhere
    with np.errstate(over="ignore"):  # a temperature of 1e-320 leaves the likeliest token alone: exp(-inf) is 0
        scaled = (logits[token_ids].astype(np.float64) - float(logits[token_ids[0]])) / params.temperature
    probabilities = np.exp(scaled)
    if params.top_p < 1.0:
        # the smallest set that reaches top_p: a token stays while the mass before it is below
        before = probabilities.cumsum() - probabilities
        keep = before < params.top_p * probabilities.sum()
        token_ids, probabilities = token_ids[keep], probabilities[keep]
    if params.min_p > 0.0:
        keep = probabilities >= params.min_p * probabilities[0]
        token_ids, probabilities = token_ids[keep], probabilities[keep]
    return token_ids, probabilities
