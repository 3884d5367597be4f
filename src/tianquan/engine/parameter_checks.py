"""What sampling parameters may be. Values from strangers end in one clear line, never in a crash or a hang."""

from __future__ import annotations

import re
from typing import get_args, get_type_hints

from tianquan.errors import ParameterError
from tianquan.request import OutputFormat, SamplingParams

MAX_CHOICES = 32  # answers to one prompt
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_STOP_STRINGS = 64
MAX_STOP_LEN = 1024  # characters of one stop string: each new token is compared with all of it
MAX_FORMAT_LEN = 64 * 1024  # characters of a schema, pattern or grammar
MAX_CHOICES_OF_FORMAT = 1000
MAX_CHOICE_LEN = 1000  # characters

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)

_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTEGERS = ("top_k", "min_tokens", "max_tokens", "seed", "logprobs", "n")
_MAY_BE_NONE = ("seed", "logprobs")
_FORMAT_KINDS = get_args(get_type_hints(OutputFormat)["kind"])


def check_params(params: SamplingParams, vocab_size: int | None = None) -> None:
    """Raise ParameterError when a sampling parameter is of the wrong type or outside its range."""
    for names, kinds, expected in ((_NUMBERS, (int, float), "a number"), (_INTEGERS, (int,), "an integer")):
        for name in names:
            value = getattr(params, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ParameterError(f"{name} must be {expected}, got {_short(value)}")
    ranges = (
        ("temperature", 0 <= params.temperature <= 100, "between 0 and 100"),
        ("top_k", params.top_k >= 0, "0 (off) or more"),
        ("top_p", 0 < params.top_p <= 1, "above 0 and at most 1"),
        ("min_p", 0 <= params.min_p < 1, "at least 0 and below 1"),
        ("repetition_penalty", 0.01 <= params.repetition_penalty <= 100, "between 0.01 and 100"),
        ("presence_penalty", -2 <= params.presence_penalty <= 2, "between -2 and 2"),
        ("frequency_penalty", -2 <= params.frequency_penalty <= 2, "between -2 and 2"),
        ("max_tokens", params.max_tokens >= 1, "at least 1"),
        ("min_tokens", 0 <= params.min_tokens <= params.max_tokens, "between 0 and max_tokens"),
        ("seed", params.seed is None or 0 <= params.seed < 2**63, "between 0 and 2^63 - 1"),
        (
            "logprobs",
            params.logprobs is None or 0 <= params.logprobs <= MAX_TOP_LOGPROBS,
            f"between 0 and {MAX_TOP_LOGPROBS}",
        ),
        ("n", 1 <= params.n <= MAX_CHOICES, f"between 1 and {MAX_CHOICES}"),
    )
    for name, is_valid, expected in ranges:
        if not is_valid:  # NaN fails every comparison and ends here too
            raise ParameterError(f"{name} must be {expected}, got {_short(getattr(params, name))}")
    _check_stop(params)
    _check_bias(params, vocab_size)
    _check_format(params)


def check_bytes(name: str, value: object) -> None:
    """Raise ParameterError when what should be a number of bytes is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ParameterError(f"{name} must be a number of bytes, 0 or more, got {_short(value)}")


def parse_bytes(text: str | int | None, option: str) -> int | None:
    """Return the bytes of a size such as 512M, 3.5GiB or 1000000; K, M, G and T are powers of 1024.

    Raises:
        ParameterError: it is none.
    """
    if text is None or isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ParameterError(f"{option}: {text[:40]!r} is no size; expected bytes, or a number and K, M, G or T")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * 1024**power)


def _check_stop(params: SamplingParams) -> None:
    if not isinstance(params.stop, tuple):
        raise ParameterError(f"stop must be a tuple of strings, got {type(params.stop).__name__}")
    if len(params.stop) > MAX_STOP_STRINGS:
        raise ParameterError(f"stop has {len(params.stop)} strings, at most {MAX_STOP_STRINGS} are taken")
    for stop in params.stop:
        if not isinstance(stop, str):
            raise ParameterError(f"stop must be a tuple of strings, got one of {type(stop).__name__}")
        if not stop:
            raise ParameterError("a stop string must not be empty")
        if len(stop) > MAX_STOP_LEN:
            raise ParameterError(f"a stop string has {len(stop)} characters, at most {MAX_STOP_LEN} are taken")


def _check_bias(params: SamplingParams, vocab_size: int | None) -> None:
    if not isinstance(params.logit_bias, tuple) or len(params.logit_bias) > MAX_BIASES:
        raise ParameterError(f"logit_bias must be a tuple of at most {MAX_BIASES} pairs (token id, value)")
    for pair in params.logit_bias:
        is_pair = isinstance(pair, tuple) and len(pair) == 2
        if not is_pair or not isinstance(pair[0], int) or isinstance(pair[0], bool):
            raise ParameterError("logit_bias must be pairs (token id, value)")
        token_id, value = pair
        if token_id < 0 or (vocab_size is not None and token_id >= vocab_size):
            raise ParameterError(f"logit_bias names token {token_id}, the vocabulary has 0 to {(vocab_size or 0) - 1}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
            raise ParameterError(f"a logit_bias must be between -100 and 100, got {_short(value)}")


def _check_format(params: SamplingParams) -> None:
    form = params.output_format
    if form is None:
        return
    if not isinstance(form, OutputFormat) or form.kind not in _FORMAT_KINDS or not isinstance(form.definition, str):
        raise ParameterError(f"output_format must be an OutputFormat of kind {', '.join(_FORMAT_KINDS)}")
    if len(form.definition) > MAX_FORMAT_LEN:
        raise ParameterError(
            f"the {form.kind} has {len(form.definition)} characters, at most {MAX_FORMAT_LEN} are taken; simplify it"
        )
    if params.ignore_eos or params.min_tokens:
        raise ParameterError("an output_format says itself when the answer ends; ignore_eos and min_tokens cannot")


def _short(value: object) -> str:
    """Show a value in an error, whatever it is: an integer may have a million digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
