"""Measuring the engine: requests side by side, what a second turn saves, and guessing ahead.

The weights are random, so what a model would answer cannot be measured here. Where acceptance matters, the
answer is steered: a constraint lets one token through at each place, that of a given text.

    copy    the prompt's own text, as reading a document aloud does: guesses hold
    novel   tokens the prompt does not have: there is nothing to guess from
    noise   tokens drawn from eight, prompt and answer: there is always a guess, and one in eight holds

Steering costs the same with and without drafts, so the ratio is that of the engine. A machine drifts by more than what
is to be shown: two engines, one with drafts, take turns of a few tokens through the same text, and each pass gives one
ratio of the seconds of all its turns. The spread of the ratios says how far they may be trusted.
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
    turn_tokens: int = 8
    passes: int = 5  # through each text, with and without drafts


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
    rates: dict[int, list[float]] = {number: [] for number in plan.concurrency}
    engine = Engine(llm.model)
    sampling = replace(GREEDY, max_tokens=plan.answer_tokens, ignore_eos=True)
    for repeat in range(plan.repeats):
        for number in plan.concurrency:  # all numbers in turn: the machine drifts
            for n in range(number):
                prompt = Prompt(_random_ids(llm, _PROMPT_TOKENS, 1000 * repeat + 17 * number + n))
                engine.add(EngineRequest(prompt=prompt, sampling=sampling))
            engine.step()  # all prompts are one chunk
            before = engine.statistics().generated_tokens
            began = time.perf_counter()
            while engine.has_work:
                engine.step()
            seconds = time.perf_counter() - began
            rates[number].append((engine.statistics().generated_tokens - before) / seconds)
    alone = rates[plan.concurrency[0]]
    return {
        str(number): {
            "tokens_per_second": statistics.median(found),
            "times_one": statistics.median(rate / one for rate, one in zip(found, alone, strict=True)),
        }
        for number, found in rates.items()
    }


def measure_second_turn(llm: LLM) -> dict[str, Any]:
    """Return both turns of a conversation with a picture: time to the first token and what was found known.

    Then another conversation about the same picture, whose prompt is new from its first token: only features are known.
    """
    noise = np.random.default_rng(5).integers(0, 256, (_PICTURE, _PICTURE, 3), np.uint8)
    sampling, picture = replace(GREEDY, max_tokens=16, ignore_eos=True), Image.fromarray(noise)
    session = llm.session(sampling=sampling)
    before = llm.statistics()
    first = session.send("What is in the picture? Answer in one short sentence.", images=[picture])
    second = session.send("And then?")
    after = llm.statistics()
    other = llm.session(system="Be brief.", sampling=sampling).send("What is in the picture?", images=[picture])
    return {
        "first_ttft_seconds": first.timings.ttft_ms / 1000,
        "second_ttft_seconds": second.timings.ttft_ms / 1000,
        "share_of_first": second.timings.ttft_ms / first.timings.ttft_ms,
        "second_prompt_tokens": second.usage.prompt_tokens,
        "second_cached_tokens": second.usage.cached_tokens,
        "second_vision_seconds": second.timings.vision_ms / 1000,
        "prefix_hit_rate": _share(after, before, "prefix"),
        "other_ttft_seconds": other.timings.ttft_ms / 1000,
        "other_vision_seconds": other.timings.vision_ms / 1000,
        "encoder_hit_rate": _share(llm.statistics(), after, "encoder"),
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
    return {name: _measure_drafts(llm, prompt, text, plan) for name, (prompt, text) in texts.items()}


def _measure_drafts(
    llm: LLM, prompt: npt.NDArray[np.int32], text: npt.NDArray[np.int32], plan: EnginePlan
) -> dict[str, Any]:
    pair = [_SteeredAnswers(llm, prompt, text, speculation) for speculation in (False, True)]
    for answers in pair:
        answers.begin()  # not measured: it computes the prompt, and touches the memory of keys and values
        answers.go_on(len(text))
    found: list[list[float]] = [[], []]  # seconds per token of each pass
    for n in range(plan.passes):
        before = pair[True].engine.statistics()
        seconds, tokens = [0.0, 0.0], [0, 0]
        for answers in pair:
            answers.begin()
        for turn in range(len(text)):
            for which in (0, 1) if (n + turn) % 2 == 0 else (1, 0):
                more = pair[which].go_on(plan.turn_tokens)
                seconds[which] += more[0]
                tokens[which] += more[1]
            if not any(answers.engine.has_work for answers in pair):
                break
        for which in (0, 1):
            found[which].append(seconds[which] / tokens[which])
    after = pair[True].engine.statistics()
    ratios = [without / with_drafts for without, with_drafts in zip(*found, strict=True)]
    return {
        "seconds_per_token": statistics.median(found[0]),
        "seconds_per_token_with_drafts": statistics.median(found[1]),
        "speedup": statistics.median(ratios),
        "lowest_speedup": min(ratios),
        "highest_speedup": max(ratios),
        "drafted_tokens": after.drafted_tokens - before.drafted_tokens,
        "accepted_tokens": after.accepted_tokens - before.accepted_tokens,
    }


class _SteeredAnswers:
    """Answers that are one text, each time anew; the prompt is computed the first time only."""

    def __init__(self, llm: LLM, prompt: npt.NDArray[np.int32], text: npt.NDArray[np.int32], speculation: bool) -> None:
        self.engine = Engine(llm.model, EngineOptions(speculation=speculation))
        self._prompt = Prompt(prompt)
        self._text: list[int] = text.tolist()
        self._vocab_size = llm.model.config.language.vocab_size

    def begin(self) -> None:
        """Start an answer, as far as its first token."""
        request = EngineRequest(
            prompt=self._prompt,
            sampling=replace(GREEDY, max_tokens=len(self._text), ignore_eos=True),
            constraint=_Script(self._text, self._vocab_size),
        )
        self.engine.add(request)
        while not self.engine.step():
            pass

    def go_on(self, num_tokens: int) -> tuple[float, int]:
        """Generate `num_tokens` more, or a few above or what is left; return the seconds and how many it were."""
        began = time.perf_counter()
        done = 0
        while self.engine.has_work and done < num_tokens:
            done += sum(len(output.token_ids) for output in self.engine.step())
        return time.perf_counter() - began, done


def measure_engine(llm: LLM, plan: EnginePlan, on_stage: OnStage) -> dict[str, Any]:
    """Return the report of all stages.

    concurrency.N.{tokens_per_second, times_one}
    second_turn.{first_ttft_seconds, second_ttft_seconds, share_of_first, second_prompt_tokens,
                 second_cached_tokens, second_vision_seconds, prefix_hit_rate,
                 other_ttft_seconds, other_vision_seconds, encoder_hit_rate}
    speculation.{copy, novel, noise}.{seconds_per_token, seconds_per_token_with_drafts, drafted_tokens,
                                      accepted_tokens, speedup, lowest_speedup, highest_speedup}: medians of the
                                      passes, tokens of one pass, and the spread of the speedup
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
    seconds, hits = turn["other_ttft_seconds"], f"{turn['encoder_hit_rate']:.0%} of its slices known"
    rows.append(f"| the same picture in another conversation, first token, {hits} | {seconds:.2f} s | |")
    for name, row in report["speculation"].items():
        held = f"{row['accepted_tokens']} of {row['drafted_tokens']} guesses held"
        spread = f"{row['lowest_speedup']:.2f} to {row['highest_speedup']:.2f}"
        rows.append(f"| guessing ahead, {name}, {held} | {row['speedup']:.2f} x | {spread} |")
    return rows
