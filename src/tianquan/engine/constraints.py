"""Answers of a given form: which tokens may come next under a schema, a pattern, a list of choices or a grammar.

llguidance keeps the automaton; it is optional, and this is the only module that imports it. A form is compiled
where the request is made, not on the stepping thread; the mask of a step takes microseconds to a millisecond.
JSON may be laid out over lines, with at most 8 spaces in a row: a model cannot fill its answer with spaces.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.engine.parameter_checks import MAX_CHOICE_LEN, MAX_CHOICES_OF_FORMAT
from tianquan.errors import BackendError, ModelError, ParameterError
from tianquan.processing.labels import printable
from tianquan.request import OutputFormat

_JSON_SPACE = r"\n? {0,8}"
_TOO_COMPLEX = "the answer's form became too complex to follow; simplify the schema or grammar"
_MAX_DEPTH = 64  # of a schema: the library walks it by recursion
# A multiple is an automaton of as many states as it has remainders, and several may be asked for together. Factors of
# two and five only look at the last digits.
_MAX_REMAINDERS = 50_000
_MAX_RULES = 1000  # of a grammar: the library follows them by recursion
_RULE = re.compile(r"^\s*[?!]*[A-Za-z_]\w*(?:\.-?\d+)?\s*(?:\[[^\]\n]*\]|\{[^}\n]*\})?\s*:", re.MULTILINE)
_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([-+.\deE]+)')
_MAX_ERROR = 160  # characters of the library's reason


@dataclass(frozen=True)
class Vocabulary:
    """What a constraint must know of the tokenizer.

    token_bytes: of each id below the model's vocabulary size; special tokens' names, empty where there is no token.
    special_ids: ids that are never text.
    end_ids: ids that end an answer; the form decides when they may come.
    encode: ids of UTF-8 text.
    """

    token_bytes: tuple[bytes, ...]
    special_ids: frozenset[int]
    end_ids: frozenset[int]
    encode: Callable[[str], list[int]]


class ConstraintCompiler:
    """Makes constraints for one vocabulary. Safe to use from several threads.

    Raises:
        BackendError: llguidance is not installed.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise BackendError(
                "answers of a given form need llguidance, which is not installed: pip install 'tianquan[structured]'"
            ) from error
        self._matcher = llguidance.LLMatcher
        self._num_tokens = len(vocabulary.token_bytes)
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_GuidanceVocabulary(vocabulary)),
            n_vocab=self._num_tokens,
            eos_token=sorted(vocabulary.end_ids),
        )

    def __call__(self, form: OutputFormat) -> GuidanceConstraint:
        """Return a fresh constraint.

        Raises:
            ParameterError: the form is not valid, can never be met, or is too complex.
        """
        matcher = self._matcher(self._tokenizer, self._grammar(form), log_level=0)
        if matcher.is_error():
            reason = printable(" ".join(matcher.get_error().split()), _MAX_ERROR)
            raise ParameterError(f"the {form.kind} cannot be used: {reason}")
        constraint = GuidanceConstraint(matcher, self._num_tokens)
        try:
            is_possible = constraint.allowed().any()
        except ModelError as error:  # from the first token on
            raise ParameterError(f"the {form.kind} is too complex or without end; simplify it") from error
        if not is_possible:
            raise ParameterError(f"the {form.kind} allows no answer at all; correct it")
        return constraint

    def _grammar(self, form: OutputFormat) -> str:
        if form.kind == "json_schema":
            schema = _parse_json(form)
            if not isinstance(schema, dict):
                raise ParameterError(f"the json_schema must be an object, got {type(schema).__name__}")
            if _depth(schema) > _MAX_DEPTH:
                raise ParameterError(f"the json_schema is nested more than {_MAX_DEPTH} deep; simplify it")
            _check_multiples(form.kind, _multiples(schema))
            try:
                return self._matcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _JSON_SPACE})
            except (ValueError, OverflowError) as error:  # half a surrogate pair, an integer of hundreds of digits
                raise ParameterError("the json_schema holds a number or a text that cannot be used") from error
        if form.kind == "choice":
            return self._matcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, _parse_choices(form))))
        if form.kind == "regex":
            return self._matcher.grammar_from_regex(form.definition)
        if len(_RULE.findall(form.definition)) > _MAX_RULES:
            raise ParameterError(f"the grammar has more than {_MAX_RULES} rules; simplify it")
        _check_multiples(form.kind, _MULTIPLE.findall(form.definition))  # of the schemas in it
        return self._matcher.grammar_from_lark(form.definition)


class GuidanceConstraint:
    """The state of one answer; see `interface.Constraint`."""

    def __init__(self, matcher: Any, num_tokens: int) -> None:
        self._matcher = matcher
        self._num_tokens = num_tokens

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which token ids (vocab,) may come next.

        Raises:
            ModelError: the form became too complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise ModelError(_TOO_COMPLEX)
        return np.unpackbits(bits, count=self._num_tokens, bitorder="little").astype(np.bool_)

    def accept(self, token_id: int) -> None:
        """Record the chosen token."""
        if not self._matcher.consume_token(token_id):
            if self._matcher.is_error():  # a grammar without end is followed ahead as long as it leaves no choice
                raise ModelError(_TOO_COMPLEX)
            raise ModelError("the answer left the form it must have; this is a bug, please report it")


class _GuidanceVocabulary:
    """What llguidance asks of a tokenizer, by its names."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = min(vocabulary.end_ids)
        self.tokens: Sequence[bytes] = vocabulary.token_bytes
        self.special_token_ids = sorted(vocabulary.special_ids)
        self._encode = vocabulary.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())


def _parse_json(form: OutputFormat) -> Any:
    try:
        value = json.loads(form.definition)
        json.dumps(value, allow_nan=False)  # numbers beyond float64 are read as infinity
        return value
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"the {form.kind} is not valid JSON") from error


def _multiples(value: Any) -> Iterator[str]:
    """Yield the numbers that a schema of at most `_MAX_DEPTH` asks for multiples of."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "multipleOf" and isinstance(child, int | float) and not isinstance(child, bool):
            yield repr(child)
        elif isinstance(child, dict | list):
            yield from _multiples(child)


def _check_multiples(kind: str, numbers: Iterable[str]) -> None:
    """Refuse multiples that would take seconds and hundreds of megabytes to follow."""
    together = 1
    for number in numbers:
        try:
            numerator = abs(Fraction(number).numerator)
        except (ValueError, OverflowError, ZeroDivisionError):
            continue  # no number; the library says so
        for factor in (2, 5):
            while numerator and numerator % factor == 0:
                numerator //= factor
        together = math.lcm(together, numerator or 1)
        if together > _MAX_REMAINDERS:
            raise ParameterError(
                f"the {kind} asks for multiples of {printable(number, 20)}, which together with others take more than "
                f"{_MAX_REMAINDERS} remainders to follow; leave multipleOf out, and check the answer"
            )


def _depth(value: Any) -> int:
    """Return how deep lists and objects are nested, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        children = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [child for group in children for child in group]
    return depth


def _parse_choices(form: OutputFormat) -> list[str]:
    choices = _parse_json(form)
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise ParameterError("a choice must be a JSON list of strings that are not empty")
    if len(choices) > MAX_CHOICES_OF_FORMAT or max(map(len, choices)) > MAX_CHOICE_LEN:
        raise ParameterError(
            f"a choice may have {MAX_CHOICES_OF_FORMAT} strings of {MAX_CHOICE_LEN} characters, "
            f"got {len(choices)} of up to {max(map(len, choices))}"
        )
    return choices
