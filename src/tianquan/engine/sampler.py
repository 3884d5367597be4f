"""Choosing the next token: pure functions of logits, parameters, past tokens and a random number generator.

Order, as in Hugging Face transformers: repetition penalty, temperature, top-k, top-p, min-p, draw.
Source: Keskar et al. 2019 (repetition penalty), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tianquan.errors import ParameterError
from tianquan.request import SamplingParams

Float32 = npt.NDArray[np.float32]


_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_INTEGERS = ("top_k", "max_tokens", "seed")


def check_params(params: SamplingParams) -> None:
    """Raise ParameterError when a sampling parameter is of the wrong type or outside its range."""
    for names, kinds, expected in ((_NUMBERS, (int, float), "a number"), (_INTEGERS, (int,), "an integer")):
        for name in names:
            value = getattr(params, name)
            if value is None and name == "seed":
                continue
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ParameterError(f"{name} must be {expected}, got {value!r}")
    ranges = (
        ("temperature", 0 <= params.temperature <= 100, "between 0 and 100"),
        ("top_k", params.top_k >= 0, "0 (off) or more"),
        ("top_p", 0 < params.top_p <= 1, "above 0 and at most 1"),
        ("min_p", 0 <= params.min_p < 1, "at least 0 and below 1"),
        ("repetition_penalty", 0.01 <= params.repetition_penalty <= 100, "between 0.01 and 100"),
        ("max_tokens", params.max_tokens >= 1, "at least 1"),
        ("seed", params.seed is None or 0 <= params.seed < 2**63, "between 0 and 2^63 - 1"),
    )
    for name, is_valid, expected in ranges:
        if not is_valid:  # NaN fails every comparison and ends here too
            raise ParameterError(f"{name} must be {expected}, got {getattr(params, name)}")
    if not isinstance(params.stop, tuple) or not all(isinstance(stop, str) for stop in params.stop):
        raise ParameterError(f"stop must be a tuple of strings, got {type(params.stop).__name__}")
    if any(not stop for stop in params.stop):
        raise ParameterError("a stop string must not be empty")


def sample(
    logits: Float32, params: SamplingParams, past_token_ids: Iterable[int], generator: np.random.Generator
) -> int:
    """Return the next token id.

    Args:
        logits: (vocab,), not changed.
        params: how to choose.
        past_token_ids: prompt and answer so far, for the repetition penalty.
        generator: consumed by exactly one draw per sampled token, by none when greedy.
    """
    if params.repetition_penalty != 1.0:
        logits = _penalize(logits, params.repetition_penalty, past_token_ids)
    if params.temperature == 0:
        return int(logits.argmax())
    token_ids, probabilities = _candidates(logits, params)
    cumulative = probabilities.cumsum()
    draw = generator.random() * cumulative[-1]
    return int(token_ids[min(np.searchsorted(cumulative, draw, side="right"), len(token_ids) - 1)])


def _penalize(logits: Float32, penalty: float, past_token_ids: Iterable[int]) -> Float32:
    seen = np.unique(np.fromiter(past_token_ids, np.int64))
    logits = logits.copy()
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def _candidates(logits: Float32, params: SamplingParams) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the token ids that may be drawn, most likely first, and their unnormalised probabilities."""
    size = len(logits) if params.top_k == 0 else min(params.top_k, len(logits))
    token_ids = np.argpartition(-logits, size - 1)[:size] if size < len(logits) else np.arange(len(logits))
    token_ids = token_ids[np.lexsort((token_ids, -logits[token_ids]))]  # ties by id: the same draw everywhere
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
