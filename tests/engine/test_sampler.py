from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianquan.engine.parameter_checks import check_params
from tianquan.engine.sampler import sample, token_logprob
from tianquan.errors import ParameterError
from tianquan.request import OutputFormat, SamplingParams

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def counts(params: SamplingParams, past=(), logits=LOGITS, num_draws=4000) -> np.ndarray:
    generator = np.random.default_rng(7)
    draws = [sample(logits, params, past, generator) for _ in range(num_draws)]
    return np.bincount(draws, minlength=len(logits)) / num_draws


def test_plain_sampling_follows_the_distribution():
    np.testing.assert_allclose(counts(SamplingParams()), [0.5, 0.25, 0.15, 0.1], atol=0.03)


def test_temperature_sharpens():
    expected = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(counts(SamplingParams(temperature=0.5)), expected / expected.sum(), atol=0.03)


def test_the_smallest_temperature_is_no_overflow():
    assert counts(SamplingParams(temperature=5e-324), num_draws=10)[0] == 1


def test_top_k_keeps_the_likeliest():
    np.testing.assert_allclose(counts(SamplingParams(top_k=2)), [2 / 3, 1 / 3, 0, 0], atol=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (1.0, 4), (0.01, 1)])
def test_top_p_keeps_the_smallest_set(top_p, kept):
    assert np.count_nonzero(counts(SamplingParams(top_p=top_p))) == kept


@pytest.mark.parametrize(("min_p", "kept"), [(0.0, 4), (0.25, 3), (0.31, 2), (0.51, 1)])
def test_min_p_drops_the_unlikely(min_p, kept):
    assert np.count_nonzero(counts(SamplingParams(min_p=min_p))) == kept


def test_greedy_takes_the_first_of_the_largest():
    logits = np.array([0.0, 2.0, 2.0, 1.0], np.float32)
    assert sample(logits, SamplingParams(temperature=0), (), np.random.default_rng()) == 1


def test_repetition_penalty_lowers_seen_tokens_of_either_sign():
    logits = np.array([2.0, 1.5, -1.0, -1.5], np.float32)
    greedy = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert sample(logits, greedy, [0, 0], np.random.default_rng()) == 1
    assert sample(logits, greedy, [0, 1], np.random.default_rng()) == 0  # 1.0 against 0.75: the order stays
    assert sample(-np.abs(logits), greedy, [2], np.random.default_rng()) == 1  # -1 becomes -2
    assert logits.tolist() == [2.0, 1.5, -1.0, -1.5]  # the caller's logits are not changed


def test_a_seed_fixes_the_draws():
    def draws(seed):
        generator = np.random.Generator(np.random.PCG64(seed))
        return [sample(LOGITS, SamplingParams(), (), generator) for _ in range(50)]

    assert draws(1) == draws(1) != draws(2)


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60),
    st.floats(0.01, 5),
    st.integers(0, 70),
    st.floats(0.01, 1),
    st.floats(0, 0.99),
)
def test_always_returns_a_token(logits, temperature, top_k, top_p, min_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    token_id = sample(np.array(logits, np.float32), params, (), np.random.default_rng(0))
    assert 0 <= token_id < len(logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("max_tokens", 0),
        ("seed", -1),
        ("stop", ("",)),
        ("stop", ("x",) * 1_000_000),
        ("stop", ("x" * 1_000_000,)),
        ("stop", (3,)),
        ("stop", ["x"]),
        ("n", 0),
        ("n", 10**100),
        ("n", 1.5),
        ("max_tokens", -(10**4000)),
        ("min_tokens", -1),
        ("min_tokens", 2000),
        ("logprobs", 21),
        ("logprobs", True),
        ("presence_penalty", 3),
        ("frequency_penalty", math.nan),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1.5, 1.0),)),
        ("logit_bias", ((1, 0.0),) * 5000),
        ("logit_bias", {1: 2.0}),
        ("output_format", "json"),
        ("output_format", OutputFormat(kind="regex", definition="x" * 100_000)),
        ("output_format", OutputFormat(kind="poem", definition="x")),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ParameterError, match=f"{name}|stop string|the regex has 100000") as error:
        check_params(replace(SamplingParams(), **{name: value}))
    assert len(str(error.value)) < 200


def test_presence_and_frequency_lower_what_the_answer_has():
    logits = np.array([2.0, 1.9, 1.8], np.float32)
    greedy = SamplingParams(temperature=0, presence_penalty=0.15)
    assert sample(logits, greedy, [0], np.random.default_rng(), num_prompt=1) == 0, "the prompt does not count"
    assert sample(logits, greedy, [0], np.random.default_rng()) == 1
    often = SamplingParams(temperature=0, frequency_penalty=0.06)
    assert sample(logits, often, [0], np.random.default_rng()) == 0
    assert sample(logits, often, [0, 0], np.random.default_rng()) == 1


def test_bias_and_what_is_forbidden():
    logits = np.array([2.0, 1.9, 1.8], np.float32)
    assert sample(logits, SamplingParams(temperature=0, logit_bias=((2, 0.3),)), (), np.random.default_rng()) == 2
    assert sample(logits, SamplingParams(temperature=0), (), np.random.default_rng(), forbidden=frozenset({0})) == 1
    allowed = np.array([False, False, True])
    drawn = {sample(logits, SamplingParams(), (), np.random.default_rng(n), allowed=allowed) for n in range(20)}
    assert drawn == {2}
    assert logits.tolist() == [np.float32(2.0), np.float32(1.9), np.float32(1.8)]


def test_logprobs_sum_to_one():
    result = token_logprob(LOGITS, 2, 4)
    assert [id for id, _ in result.top] == [0, 1, 2, 3]
    assert sum(math.exp(value) for _, value in result.top) == pytest.approx(1)
    assert result.logprob == pytest.approx(math.log(0.15), abs=1e-6)
    assert token_logprob(LOGITS, 2, 0).top == ()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, top_k=0, top_p=1.0),
        SamplingParams(temperature=3.0, top_k=0, top_p=0.9),
        SamplingParams(temperature=0.3, top_k=0, top_p=0.5, min_p=0.01),
        SamplingParams(temperature=5.0, top_k=0, top_p=1.0, min_p=0.001),
    ],
)
def test_what_is_not_sorted_is_not_missed(params):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(20_000).astype(np.float32).round(1)  # with many ties
    order = np.lexsort((np.arange(len(logits)), -logits))
    probabilities = np.exp((logits[order].astype(np.float64) - logits.max()) / params.temperature)
    keep = probabilities.cumsum() - probabilities < params.top_p * probabilities.sum() * (1 if params.top_p < 1 else 2)
    keep &= probabilities >= params.min_p * probabilities[0]
    expected, cumulative = order[keep], probabilities[keep].cumsum()
    for seed in range(200):
        draw = np.random.default_rng(seed).random() * cumulative[-1]
        token = sample(logits, params, [], np.random.default_rng(seed))
        assert token == expected[np.searchsorted(cumulative, draw, side="right")]


def test_a_vocabulary_of_which_few_are_allowed():
    logits = np.zeros(5000, np.float32)
    allowed = np.zeros(5000, np.bool_)
    allowed[[7, 4000]] = True
    params = SamplingParams(temperature=1.0, top_k=0, top_p=1.0)
    drawn = {sample(logits, params, [], np.random.default_rng(seed), allowed=allowed) for seed in range(40)}
    assert drawn == {7, 4000}


@pytest.mark.parametrize("top_p", [1.0, 0.99])
@pytest.mark.parametrize("top_k", [0, 50])
def test_the_largest_draw_is_no_forbidden_token(top_p, top_k):
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    allowed = np.arange(5000) % 7 == 0
    params = SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p)
    largest = SimpleNamespace(random=lambda: 1 - 2**-53)
    assert allowed[sample(logits, params, [], largest, allowed=allowed)]
