"""Measuring the engine: requests side by side, what a second turn saves, and guessing ahead.

The weights are random, so what a model would answer cannot be measured here. Where acceptance matters, the
answer is steered: a constraint lets one token through at each place, that of a given text.

    copy    the prompt's own text, as reading a document aloud does: guesses hold
    novel   tokens the prompt does not have: there is nothing to guess from
    noise   tokens drawn from eight, prompt and answer: there is always a guess, and one in eight holds

Steering costs the same with and without drafts, so the ratio is that of the engine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tianquan.engine.engine import Engine
from tianquan.engine.interface import EngineOptions, EngineRequest, EngineStatistics
from tianquan.llm import GREEDY, LLM
from tianquan.request import Prompt

_PROMPT_TOKENS = 32
_PICTURE = 512  # pixels a side
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class EnginePlan:
    """What to measure."""

    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16)
    answer_tokens: int = 24
    document_tokens: int = 256
    copied_tokens: int = 96
    repeats: int = 3


class _Script:
    """A constraint that lets one text through, token by token."""

    def __init__(self, token_ids: Sequence[int], vocab_size: int) -> None:
        self._token_ids = token_ids
        self._position = 0
        self._mask = np.zeros(vocab_size, np.bool_)

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return the mask of the next token."""
        self._mask[:] = False
        self._mask[self._token_ids[self._position % len(self._token_ids)]] = True
        return self._mask

    def accept(self, token_id: int) -> None:
        """Go on to the next token."""
        self._position += 1


def _random_ids(llm: LLM, num_tokens: int, seed: int, num_kinds: int | None = None) -> npt.NDArray[np.int32]:
    """Return tokens of the plain part of the vocabulary, of `num_kinds` kinds at most."""
    most = llm.model.config.language.vocab_size // 2
    return np.random.default_rng(seed).integers(0, num_kinds or most, num_tokens).astype(np.int32)


def measure_concurrency(llm: LLM, plan: EnginePlan) -> dict[str, Any]:
    """Return the decode throughput, in tokens per second of all requests, by number of requests."""
    report: dict[str, dict[str, float]] = {}
    engine = Engine(llm.model)
    sampling = replace(GREEDY, max_tokens=plan.answer_tokens, ignore_eos=True)
    for number in plan.concurrency:
        rates = []
        for repeat in range(plan.repeats):
            for n in range(number):
                prompt = Prompt(_random_ids(llm, _PROMPT_TOKENS, 1000 * repeat + 17 * number + n))
                engine.add(EngineRequest(prompt=prompt, sampling=sampling))
            engine.step()  # all prompts are one chunk
            before = engine.statistics().generated_tokens
            began = time.perf_counter()
            while engine.has_work:
                engine.step()
            seconds = time.perf_counter() - began
            rates.append((engine.statistics().generated_tokens - before) / seconds)
        report[str(number)] = {"tokens_per_second": statistics.median(rates)}
    alone = report[str(plan.concurrency[0])]["tokens_per_second"]
    for row in report.values():
        row["times_one"] = row["tokens_per_second"] / alone
    return report


def measure_second_turn(llm: LLM) -> dict[str, Any]:
    """Return both turns of a conversation with a picture: time to the first token and what was found known."""
    noise = np.random.default_rng(5).integers(0, 256, (_PICTURE, _PICTURE, 3), np.uint8)
    session = llm.session(sampling=replace(GREEDY, max_tokens=16, ignore_eos=True))
    before = llm.statistics()
    first = session.send("What is in the picture? Answer in one short sentence.", images=[Image.fromarray(noise)])
    second = session.send("And then?")
    after = llm.statistics()
    return {
        "first_ttft_seconds": first.timings.ttft_ms / 1000,
        "second_ttft_seconds": second.timings.ttft_ms / 1000,
        "share_of_first": second.timings.ttft_ms / first.timings.ttft_ms,
        "second_prompt_tokens": second.usage.prompt_tokens,
        "second_cached_tokens": second.usage.cached_tokens,
        "second_vision_seconds": second.timings.vision_ms / 1000,
        "prefix_hit_rate": _share(after, before, "prefix"),
    }


def _share(after: EngineStatistics, before: EngineStatistics, kind: str) -> float:
    queries = getattr(after, f"{kind}_queries") - getattr(before, f"{kind}_queries")
    hits = getattr(after, f"{kind}_hits") - getattr(before, f"{kind}_hits")
    return hits / queries if queries else 0.0


def measure_speculation(llm: LLM, plan: EnginePlan) -> dict[str, Any]:
    """Return seconds per token with and without drafts, for three kinds of answers."""
    document = _random_ids(llm, plan.document_tokens, 9)
    noise = _random_ids(llm, plan.document_tokens + plan.copied_tokens, 11, num_kinds=8)
    texts = {
        "copy": (document, document[20 : 20 + plan.copied_tokens]),
        "novel": (document, _random_ids(llm, plan.copied_tokens, 10)),
        "noise": (noise[: plan.document_tokens], noise[plan.document_tokens :]),
    }
    report: dict[str, Any] = {}
    for name, (prompt, text) in texts.items():
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for repeat in range(plan.repeats):
            for speculation in (repeat % 2 == 0, repeat % 2 == 1):  # turn by turn: the machine drifts
                rate, counts = _steered(llm, prompt, text, speculation)
                seconds[speculation].append(rate)
                if speculation:
                    drafted, accepted = counts.drafted_tokens, counts.accepted_tokens
        report[name] = {
            "seconds_per_token": statistics.median(seconds[False]),
            "seconds_per_token_with_drafts": statistics.median(seconds[True]),
            "speedup": statistics.median(a / b for a, b in zip(seconds[False], seconds[True], strict=True)),
            "drafted_tokens": drafted,
            "accepted_tokens": accepted,
        }
    return report


def _steered(
    llm: LLM, prompt: npt.NDArray[np.int32], text: npt.NDArray[np.int32], speculation: bool
) -> tuple[float, EngineStatistics]:
    """Return the seconds per token of an answer that is `text`, without its first, and the engine's counts."""
    engine = Engine(llm.model, EngineOptions(speculation=speculation))
    request = EngineRequest(
        prompt=Prompt(prompt),
        sampling=replace(GREEDY, max_tokens=len(text), ignore_eos=True),
        constraint=_Script(text.tolist(), llm.model.config.language.vocab_size),
    )
    engine.add(request)
    while engine.statistics().generated_tokens == 0:
        engine.step()
    began = time.perf_counter()
    while engine.has_work:
        engine.step()
    return (time.perf_counter() - began) / (len(text) - 1), engine.statistics()


def measure_engine(llm: LLM, plan: EnginePlan, on_stage: OnStage) -> dict[str, Any]:
    """Return the report of all stages.

    concurrency.N.{tokens_per_second, times_one}
    second_turn.{first_ttft_seconds, second_ttft_seconds, share_of_first, second_prompt_tokens,
                 second_cached_tokens, second_vision_seconds, prefix_hit_rate}
    speculation.{copy, novel, noise}.{seconds_per_token, seconds_per_token_with_drafts, speedup,
                                          drafted_tokens, accepted_tokens}
    """
    on_stage("requests side by side")
    concurrency = measure_concurrency(llm, plan)
    on_stage("two turns of a session")
    second_turn = measure_second_turn(llm)
    on_stage("guessing ahead")
    return {"concurrency": concurrency, "second_turn": second_turn, "speculation": measure_speculation(llm, plan)}


def to_rows(report: dict[str, Any]) -> list[str]:
    """Return the stages as rows of the report's Markdown table."""
    rows = [
        f"| {number} requests at once | {row['tokens_per_second']:.1f} tokens/s | {row['times_one']:.2f} x one |"
        for number, row in report["concurrency"].items()
    ]
    turn = report["second_turn"]
    known = f"{turn['second_cached_tokens']} of {turn['second_prompt_tokens']} tokens known"
    share = f"{turn['share_of_first']:.1%} of the first turn's"
    rows.append(f"| second turn of a session, first token, {known} | {turn['second_ttft_seconds']:.2f} s | {share} |")
    for name, row in report["speculation"].items():
        held = f"{row['accepted_tokens']} of {row['drafted_tokens']} guesses held"
        rows.append(f"| guessing ahead, {name}, {held} | {row['speedup']:.2f} x | |")
    return rows
