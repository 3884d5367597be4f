"""Invariants of the generation loop on the reference backend: the KV cache changes speed, never results."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tianquan
from tianquan.backends.kv_cache import SequenceBatch
from tianquan.errors import PromptError
from tianquan.llm import CHAT_SAMPLING, GREEDY
from tolerances import REGROUPED, relative_rmse

MESSAGES = [{"role": "user", "content": "Hello, please count: 一二三."}]


@pytest.fixture(scope="session")
def model(llm):
    return llm.model


def all_logits(model, token_ids):
    hidden = model.language_model.embed(token_ids)
    cache = model.language_model.make_kv_cache(len(token_ids))
    return model.forward(hidden, cache, SequenceBatch.alone(len(token_ids), 0, cache), all_rows=True)


def random_ids(length, seed=0):
    return np.random.default_rng(seed).integers(0, 900, length).astype(np.int32)


def test_cached_decode_equals_full_forward(model):
    token_ids = random_ids(40)
    expected = all_logits(model, token_ids)
    cache = model.language_model.make_kv_cache(40)
    for n in range(40):
        hidden = model.language_model.embed(token_ids[n : n + 1])
        logits = model.forward(hidden, cache, SequenceBatch.alone(1, n, cache))
        assert relative_rmse(logits[0], expected[n]) < REGROUPED


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, 69), max_size=4))
def test_chunked_prefill_equals_whole(model, cuts):
    token_ids = random_ids(70)
    expected = all_logits(model, token_ids)
    cache = model.language_model.make_kv_cache(70)
    borders = [0, *sorted(set(cuts)), 70]
    for start, stop in pairwise(borders):
        hidden = model.language_model.embed(token_ids[start:stop])
        logits = model.forward(hidden, cache, SequenceBatch.alone(stop - start, start, cache), all_rows=True)
        assert relative_rmse(logits, expected[start:stop]) < REGROUPED


def test_a_row_of_a_batch_equals_the_row_alone(model):
    """Three sequences of different lengths with interleaved, unordered blocks: prefill, then two decode steps."""
    lengths = [33, 5, 70]
    sequences = [random_ids(n + 2, seed=n) for n in lengths]
    cache = model.language_model.make_kv_cache(32 * 12)
    tables = np.array([[7, 0, 11], [3, 1, 1], [2, 9, 5]], np.int32)

    def run(parts, cached):
        hidden = np.concatenate([model.language_model.embed(part) for part in parts])
        offsets = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)
        return model.forward(hidden, cache, SequenceBatch(offsets, np.array(cached, np.int32), tables))

    steps = [run([s[:n] for s, n in zip(sequences, lengths, strict=True)], [0, 0, 0])]
    for extra in range(2):
        cached = [n + extra for n in lengths]
        steps.append(run([s[n : n + 1] for s, n in zip(sequences, cached, strict=True)], cached))
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        alone = all_logits(model, sequence)
        for extra, logits in enumerate(steps):
            assert relative_rmse(logits[row], alone[length - 1 + extra]) < REGROUPED


def test_stream_joins_to_the_answer(reference_llm):
    sampling = replace(CHAT_SAMPLING, max_tokens=60, seed=3, temperature=1.5)
    pieces = list(reference_llm.stream_chat(MESSAGES, sampling=sampling))
    completion = pieces[-1].completion
    assert "".join(piece.text for piece in pieces) == completion.text
    assert completion.text == reference_llm.tokenizer.decode(
        id for id in completion.token_ids if id not in reference_llm.checkpoint.stop_token_ids
    )
    assert reference_llm.chat(MESSAGES, sampling=sampling).token_ids == completion.token_ids


def test_stop_string_is_cut_and_ends_the_answer(reference_llm):
    sampling = replace(GREEDY, max_tokens=40, ignore_eos=True)
    whole = reference_llm.chat(MESSAGES, sampling=sampling)
    stop = whole.text[10:13]
    cut = reference_llm.chat(MESSAGES, sampling=replace(sampling, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert len(cut.token_ids) < 40


def test_max_tokens_is_limited_by_the_window(checkpoint_folder):
    text = "a b c d " * 1010
    llm = tianquan.load(checkpoint_folder, precision="float32")
    completion = llm.generate(text, sampling=replace(GREEDY, max_tokens=10_000, ignore_eos=True))
    assert completion.usage.prompt_tokens + completion.usage.completion_tokens == 4096
    assert completion.finish_reason == "length"


def test_a_prompt_beyond_the_window_is_refused(reference_llm):
    with pytest.raises(PromptError, match="context window 4096"):
        reference_llm.generate("a b c d " * 1100)
