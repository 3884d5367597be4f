"""Guessing ahead pays or stops: the policy alone, with what rows of a decode step cost on two cores with AVX2."""

from __future__ import annotations

import random

import pytest

from tianquan.engine.speculative import DraftSource

# Seconds of a step with 1, 2, ... rows over those with one: int4 in benchmarks/results/2026-11-22-kernels-avx2.txt; 7
# and 9 rows lie between their neighbours.
ROW_COSTS = (1, 1.2, 1.6, 1.77, 2.3, 2.65, 2.8, 2.98, 3.3)
LEAST = 0.97  # of the speed without drafts


def speedup(prompt: list[int], text: list[int]) -> float:
    """How many times as fast `text` is said as without drafts."""
    token_ids, said, cost = [*prompt, text[0]], 1, 0.0
    source = DraftSource(list(prompt))
    while said < len(text):
        draft = source.propose(token_ids, min(8, len(text) - said - 1))
        held = next((n for n, token_id in enumerate(draft) if token_id != text[said + n]), len(draft))
        cost += ROW_COSTS[len(draft)]
        source.record(len(draft), held)
        token_ids += text[said : said + held + 1]
        said += held + 1
    return (len(text) - 1) / cost


@pytest.mark.parametrize("num_kinds", [2, 3, 4, 8, 12, 16, 32])
def test_noise_that_repeats_by_chance(num_kinds):
    for seed in range(10):
        draws = random.Random(seed)
        prompt, text = ([draws.randrange(num_kinds) for _ in range(n)] for n in (256, 300))
        assert speedup(prompt, text) > LEAST


@pytest.mark.parametrize("run", [4, 8, 12, 20])
@pytest.mark.parametrize("gap", [1, 4, 16, 64])
def test_copies_that_break_off(run, gap):
    draws = random.Random(run + gap)

    def records(count):
        return [
            token_id
            for _ in range(count)
            for token_id in (*range(run), *(100 + draws.randrange(10**6) for _ in range(gap)))
        ]

    assert speedup(records(4), records(12)) > 1


def test_a_copy_is_twice_as_fast():
    document = list(range(200))
    assert speedup(document, document[20:116]) > 2
