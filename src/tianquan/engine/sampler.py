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
_FIRST_SORTED = 512  # ids


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
    draw = generator.random()
    token_ids, probabilities, mass = _candidates(logits, params, draw)
    at = int(np.searchsorted(probabilities.cumsum(), draw * mass, side="right"))
    return int(token_ids[min(at, len(token_ids) - 1)])


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


def _candidates(
    logits: Float32, params: SamplingParams, draw: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], float]:
    """Return the token ids that may be drawn, most likely first, their probabilities and what all of them add up to.

    Probabilities are not normalised. Where the vocabulary is not cut, only so many ids are put in order as it takes to
    find the one at `draw`, or all those that top-p and min-p leave: sorting all of a large one takes longer than the
    rest of the choice.
    """
    largest = float(logits.max())

    def probabilities_of(values: Float32) -> npt.NDArray[np.float64]:
        with np.errstate(over="ignore"):  # a temperature of 1e-320 leaves the likeliest token alone: exp(-inf) is 0
            return np.exp((values.astype(np.float64) - largest) / params.temperature)

    if params.top_k > 0:
        token_ids = _likeliest(logits, params.top_k)[: params.top_k]
        probabilities = probabilities_of(logits[token_ids])
        mass = float(probabilities.sum())
    else:
        mass, size = float(probabilities_of(logits).sum()), _FIRST_SORTED
        while True:
            token_ids = _likeliest(logits, size)
            probabilities = probabilities_of(logits[token_ids])
            found = float(probabilities.sum())
            is_enough = found > params.top_p * mass if params.top_p < 1.0 else found > draw * mass
            if size >= len(logits) or (is_enough and not _may_be_more(probabilities, params)):
                break
            size *= 16
    if params.top_p < 1.0:
        # the smallest set that reaches top_p: a token stays while the mass before it is below
        before = probabilities.cumsum() - probabilities
        keep = before < params.top_p * mass
        token_ids, probabilities = token_ids[keep], probabilities[keep]
    if params.min_p > 0.0:
        keep = probabilities >= params.min_p * probabilities[0]
        token_ids, probabilities = token_ids[keep], probabilities[keep]
    is_cut = params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
    return token_ids, probabilities, float(probabilities.cumsum()[-1]) if is_cut else mass


def _may_be_more(probabilities: npt.NDArray[np.float64], params: SamplingParams) -> bool:
    """True when a token less likely than all of these may still pass min-p, which then decides how many there are."""
    return params.top_p == 1.0 and params.min_p > 0.0 and bool(probabilities[-1] >= params.min_p * probabilities[0])


def _likeliest(logits: Float32, size: int) -> npt.NDArray[np.int64]:
    """Return ids that may come, the likeliest first and ties by id: `size`, and those as likely as the last of them."""
    token_ids = np.flatnonzero(logits > -np.inf)
    least = len(token_ids) - size
    if least > 0:
        values = logits[token_ids]
        token_ids = token_ids[values >= np.partition(values, least)[least]]
    return token_ids[np.lexsort((token_ids, -logits[token_ids]))]
