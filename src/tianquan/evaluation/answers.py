"""A model's answers to records with known answers: each assistant turn is asked for, greedily.

A turn is answered given the true history before it, not the model's own earlier answers, so that one mistake counts
once. A record is right when all its turns are. The engine answers several turns side by side, each as it would alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tianquan.answer import Answer, last
from tianquan.errors import TianquanError
from tianquan.evaluation.metrics import ErrorCount, character_errors, is_exact, wilson_interval, word_errors
from tianquan.llm import GREEDY, LLM
from tianquan.request import MediaPolicy
from tianquan.training.records import Record, RecordError

_RECORDS_AT_ONCE = 8  # whose media are in memory; the engine batches what is waiting


@dataclass(frozen=True, kw_only=True)
class EvaluatedTurn:
    """One assistant turn."""

    expected: str
    got: str
    finish_reason: str

    @property
    def is_right(self) -> bool:
        """True when the answer is the expected one after normalisation."""
        return is_exact(self.expected, self.got)


@dataclass(frozen=True, kw_only=True)
class RecordResult:
    """The answers to one record."""

    source: str
    task: str
    language: str
    turns: tuple[EvaluatedTurn, ...]

    @property
    def is_right(self) -> bool:
        """True when every turn is right."""
        return all(turn.is_right for turn in self.turns)

    @cached_property
    def character_errors(self) -> ErrorCount:
        """Summed over the turns."""
        return sum((character_errors(turn.expected, turn.got) for turn in self.turns), ErrorCount())

    @cached_property
    def word_errors(self) -> ErrorCount:
        """Summed over the turns."""
        return sum((word_errors(turn.expected, turn.got) for turn in self.turns), ErrorCount())

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form for JSON."""
        turns = [{**vars(turn), "right": turn.is_right} for turn in self.turns]
        return {"source": self.source, "task": self.task, "language": self.language, "turns": turns}


def answer_records(
    llm: LLM, records: Iterable[Record], policy: MediaPolicy, media_root: Path | None, max_tokens: int
) -> Iterator[RecordResult]:
    """Answer records in order.

    Args:
        llm: the model.
        records: with their true answers.
        policy: how media are looked at.
        media_root: folder that relative media paths start from.
        max_tokens: of one answer.

    Raises:
        RecordError: media that cannot be used, or a conversation over the context window; it names the record, and is
            raised when all before it are answered.
    """
    waiting: deque[tuple[Record, list[Answer]]] = deque()
    failed: RecordError | None = None
    upcoming = iter(records)
    try:
        while True:
            for record in islice(upcoming, 0 if failed else _RECORDS_AT_ONCE - len(waiting)):
                answers: list[Answer] = []
                waiting.append((record, answers))
                try:
                    answers += _ask(llm, record, policy, media_root, max_tokens)
                except RecordError as error:  # after the answers to those before it
                    failed = error
                    for answer in waiting.pop()[1]:
                        answer.close()
                    break
            if not waiting and failed is not None:
                raise failed
            if not waiting:
                return
            record, answers = waiting[0]
            result = _collect(record, answers)
            waiting.popleft()
            yield result
    finally:  # interrupted: the engine drops what it has not begun
        for _, answers in waiting:
            for answer in answers:
                answer.close()


def _ask(llm: LLM, record: Record, policy: MediaPolicy, media_root: Path | None, max_tokens: int) -> Iterator[Answer]:
    processor = llm.checkpoint.processor
    try:
        media = processor.load_media(record.turns, policy, media_root)
        for n, turn in enumerate(record.turns):
            if turn.role == "assistant":
                prompt = processor.assemble(record.turns[:n], media)
                yield llm.answer(prompt, replace(GREEDY, max_tokens=max_tokens))
    except TianquanError as error:
        raise RecordError(f"{record.source}: {error}") from error


def _collect(record: Record, answers: Sequence[Answer]) -> RecordResult:
    expected = [turn.text or "" for turn in record.turns if turn.role == "assistant"]
    turns = []
    try:
        for text, answer in zip(expected, answers, strict=True):
            completion = last(answer)
            turns.append(EvaluatedTurn(expected=text, got=completion.text, finish_reason=completion.finish_reason))
    except TianquanError as error:
        raise RecordError(f"{record.source}: {error}") from error
    return RecordResult(
        source=record.source,
        task=_group(record, "task"),
        language=_group(record, "language"),
        turns=tuple(turns),
    )


def _group(record: Record, key: str) -> str:
    value = record.extra.get(key, "")
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Results of one group of records, counted."""

    num_records: int
    num_right: int
    character_errors: ErrorCount
    word_errors: ErrorCount

    @classmethod
    def of(cls, results: Sequence[RecordResult]) -> Score:
        """Return the score of some records."""
        return cls(
            num_records=len(results),
            num_right=sum(result.is_right for result in results),
            character_errors=sum((result.character_errors for result in results), ErrorCount()),
            word_errors=sum((result.word_errors for result in results), ErrorCount()),
        )

    @property
    def accuracy(self) -> float:
        """Share of records that are right; 0 without records."""
        return self.num_right / self.num_records if self.num_records else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form for JSON."""
        low, high = wilson_interval(self.num_right, self.num_records)
        return {
            "records": self.num_records,
            "right": self.num_right,
            "accuracy": self.accuracy,
            "interval_95": [low, high],
            "cer": self.character_errors.rate,
            "wer": self.word_errors.rate,
        }


def scores_by(results: Sequence[RecordResult], key: Callable[[RecordResult], str]) -> dict[str, Score]:
    """Return the score of each group that `key` names, in alphabetical order."""
    groups: dict[str, list[RecordResult]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return {name: Score.of(groups[name]) for name in sorted(groups)}
