"""Requests together get what each gets alone, and nothing leaks, whatever comes and goes."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import tianquan
from engine.conftest import Result, collect, run_to_end
from tianquan.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from tianquan.engine import model_runner
from tianquan.engine.interface import EngineOptions
from tianquan.engine.memory import kv_bytes_within
from tianquan.engine.scheduler import SchedulerLimits
from tianquan.errors import ModelError, ParameterError, PromptError
from tolerances import GREEDY_MARGIN

NORM = "llm.model.layers.0.post_attention_layernorm.weight"

CAT, DOG = (np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8) for seed in (0, 1))
WORDS = ("one", "two", "three", "你好", "count", "the", "words")


def assert_same_greedy(got, alone):
    """Equal tokens; where they part, the two best of the answer alone must be closer than float order matters."""
    for n, (a, b) in enumerate(zip(got.token_ids, alone.token_ids, strict=False)):
        if a != b:
            best, second = (value for _, value in alone.logprobs[n].top)
            assert best - second < GREEDY_MARGIN, f"token {n}: {a}, alone {b}"
            return
    assert len(got.token_ids) == len(alone.token_ids) or got.end.reason == "abort"


def random_requests(bench, rng):
    """Four requests, one with a picture, one with sound; texts that begin alike."""
    requests = []
    for media in ({}, {}, {"image": rng.choice([CAT, DOG])}, {"audio": "speech_1s_16k.wav"}):
        text = " ".join(["count", "the", "words", *(rng.choice(WORDS) for _ in range(rng.randrange(1, 60)))])
        prompt = bench.prompt(text, **media)
        requests.append(bench.request(prompt, max_tokens=rng.randrange(1, 20), logprobs=2, ignore_eos=True))
    return requests


@settings(max_examples=5, derandomize=True, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_greedy_tokens_equal_those_alone_and_cold(bench, seed):
    check_against_alone(bench, seed)


def test_greedy_tokens_equal_those_alone_and_cold_on_the_reference(reference_bench):
    check_against_alone(reference_bench, seed=1)  # seconds each: numpy


def check_against_alone(bench, seed):
    """Random arrivals, lengths and aborts over so few blocks that sequences are preempted."""
    rng = random.Random(seed)
    engine = bench.engine(num_blocks=16)
    pool = random_requests(bench, rng)
    requests, results, aborted = {}, {}, set()
    while len(requests) < 8 or engine.has_work:
        if len(requests) < 8 and rng.random() < 0.4:
            request = rng.choice(pool)
            id_ = engine.add(request)
            requests[id_], results[id_] = request, Result()
        if requests and rng.random() < 0.03:
            id_ = rng.choice(list(requests))
            engine.abort(id_)
            aborted.add(id_)
        for output in engine.step():
            results[output.request_id].add(output)
    assert engine.statistics().num_blocks_in_use == 0
    alone = {}
    for id_, result in results.items():
        assert result.end.reason == "length" or id_ in aborted
        request = requests[id_]
        if id(request) not in alone:
            alone[id(request)] = bench.alone(request)
        assert_same_greedy(result, alone[id(request)])


def test_preemption_happens_and_changes_nothing(bench):
    engine = bench.engine(num_blocks=12)
    requests = [
        bench.request(bench.prompt(f"{n} " + "word " * 40), max_tokens=100, ignore_eos=True, logprobs=2)
        for n in range(4)
    ]
    for request, result in zip(requests, collect(engine, requests), strict=True):
        assert_same_greedy(result, bench.alone(request))
    assert engine.statistics().num_preemptions > 0


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(each_bench):
    prompt = each_bench.prompt("Count: one two three")
    settings = {"temperature": 1.2, "top_k": 50, "repetition_penalty": 1.1, "ignore_eos": True, "max_tokens": 20}
    requests = [each_bench.request(prompt, seed=seed, **settings) for seed in (1, 2, 1)]
    together = [result.token_ids for result in collect(each_bench.engine(), requests)]
    assert together[0] == together[2] != together[1]
    assert together == [each_bench.alone(request).token_ids for request in requests]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_speculation_changes_no_token(bench, temperature):
    text = "the quick brown fox jumps over the lazy dog. " * 6
    requests = [
        bench.request(
            bench.prompt(text), temperature=temperature, seed=5, ignore_eos=True, max_tokens=60, repetition_penalty=p
        )
        for p in (1.0, 0.3)  # below 1: the answer repeats itself, and drafts hold
    ]
    engine = bench.engine(speculation=True)
    together = [result.token_ids for result in collect(engine, requests)]
    assert together == [bench.alone(request).token_ids for request in requests]
    statistics = engine.statistics()
    assert 0 < statistics.accepted_tokens <= statistics.drafted_tokens


def test_speculation_ends_where_it_would_end_without(bench):
    request = bench.request(bench.prompt("a b c " * 20), repetition_penalty=0.3, max_tokens=30, ignore_eos=True)
    whole = bench.alone(request).token_ids
    for length in (1, 7, 8, 9):
        cut = replace(request, sampling=replace(request.sampling, max_tokens=length))
        assert collect(bench.engine(speculation=True), [cut])[0].token_ids == whole[:length]
    end = whole[20]
    stopped = collect(bench.engine(speculation=True), [replace(request, stop_token_ids=frozenset({end}))])[0]
    assert stopped.token_ids == whole[: whole.index(end) + 1]
    assert stopped.end.reason == "stop"


def test_the_second_turn_prefills_only_what_is_new_and_encodes_nothing(each_bench):
    processor, engine = each_bench.llm.checkpoint.processor, each_bench.engine()
    messages = [{"role": "user", "content": {"text": "What is this?", "image": "tiny_100x60.png"}}]
    first = each_bench.request(processor(messages, media_root=each_bench.media_root), ignore_eos=True)
    result = collect(engine, [first])[0]
    before = engine.statistics()
    answer = each_bench.llm.tokenizer.decode(result.token_ids)
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And now?"}]
    second = each_bench.request(processor(messages, media_root=each_bench.media_root), ignore_eos=True, logprobs=2)
    known = [*first.prompt.token_ids.tolist(), *result.token_ids[:-1]]
    again = second.prompt.token_ids.tolist()
    shared = next(
        (n for n, (a, b) in enumerate(zip(known, again, strict=False)) if a != b), min(len(known), len(again))
    )
    got = collect(engine, [second])[0]
    after = engine.statistics()
    assert shared >= len(first.prompt.token_ids)
    assert got.end.usage.cached_tokens == shared
    assert got.end.timings.vision_ms == 0
    assert after.vision_ms == before.vision_ms
    assert after.encoder_queries == before.encoder_queries
    assert_same_greedy(got, each_bench.alone(second))


def test_pictures_are_encoded_once_and_never_mixed(bench):
    engine = bench.engine()
    pictures = [CAT, DOG, CAT]
    prompts = [bench.prompt("What?", system=f"{n} Be brief.", image=image) for n, image in enumerate(pictures)]
    requests = [bench.request(prompt, logprobs=2) for prompt in prompts]
    results = [collect(engine, [request])[0] for request in requests]
    for request, result in zip(requests, results, strict=True):
        assert_same_greedy(result, bench.alone(request))
    statistics = engine.statistics()
    assert statistics.encoder_hits == len(requests[2].prompt.images[0].slices)


@pytest.mark.parametrize("slices_of_a_pass", [1, 100])
def test_how_many_slices_share_a_pass_changes_nothing(bench, monkeypatch, slices_of_a_pass):
    prompt = bench.prompt("What?", image="wide_3000x300.png")
    assert len(prompt.images[0].slices) > 4
    expected = bench.alone(bench.request(prompt, logprobs=2))
    given_back = []
    monkeypatch.setattr(model_runner, "_SLICES_OF_A_PASS", slices_of_a_pass)
    monkeypatch.setattr(model_runner, "give_back_freed_memory", lambda: given_back.append(True))
    assert_same_greedy(bench.alone(bench.request(prompt, logprobs=2)), expected)
    assert bool(given_back) == (slices_of_a_pass < len(prompt.images[0].slices))


@pytest.mark.parametrize("salt", ["", "other"])
def test_a_salt_hides_what_another_tenant_sent(bench, salt):
    engine = bench.engine()
    prompt = bench.prompt("What is this?", image=CAT)
    collect(engine, [bench.request(prompt)])
    before = engine.statistics()
    result = collect(engine, [bench.request(prompt, salt=salt)])[0]
    hidden = salt != ""
    assert (result.end.usage.cached_tokens == 0) == hidden
    assert (engine.statistics().encoder_hits == before.encoder_hits and result.end.timings.vision_ms > 0) == hidden


def test_a_clip_beside_a_longer_one_is_another_input(bench):
    """The longer clip changes the last frame of the shorter: nothing of one call is reused in the other."""
    alone = bench.prompt("Listen", audio="speech_1s_16k.wav")
    beside = bench.prompt("Listen", audio=["speech_1s_16k.wav", "sample_16k.wav"])
    assert alone.audios[0].digest != beside.audios[0].digest
    engine = bench.engine()
    collect(engine, [bench.request(alone)])
    request = bench.request(beside, logprobs=2)
    assert_same_greedy(collect(engine, [request])[0], bench.alone(request))


def test_a_long_prompt_delays_others_by_one_chunk(bench):
    limits = SchedulerLimits(max_running=6, prefill_chunk=512, prefill_chunk_beside_decode=32)
    engine = bench.engine(limits=limits)
    talker = bench.request(bench.prompt("Hello"), max_tokens=40, ignore_eos=True)
    results = {engine.add(talker): Result()}
    id = next(iter(results))
    results[id].add(engine.step()[0])
    long = bench.request(bench.prompt("word " * 60, image=CAT), max_tokens=2)
    results[engine.add(long)] = Result()
    while results[id].end is None:
        before = len(results[id].token_ids)
        for output in engine.step():
            results[output.request_id].add(output)
        assert len(results[id].token_ids) == before + 1
    run_to_end(engine, results)


def test_an_error_inside_a_request_ends_that_request_alone(bench, caplog):
    prompt = bench.prompt("one two three")

    def explode(token_id):
        raise RuntimeError("a bug in a caller's code")

    broken = bench.prompt("What?", image=CAT)
    broken = replace(broken, images=(replace(broken.images[0], slices=(np.zeros((3, 3), np.uint8),)),))
    requests = [
        bench.request(prompt, logprobs=2),
        bench.request(prompt, is_stopped=explode),
        bench.request(broken),
        bench.request(prompt, logprobs=2, max_tokens=20),
    ]
    engine = bench.engine()
    good, bad, worse, other = collect(engine, requests)
    assert [r.end.reason for r in (bad, worse)] == ["error", "error"]
    assert isinstance(bad.end.error, RuntimeError)
    assert_same_greedy(good, bench.alone(requests[0]))
    assert_same_greedy(other, bench.alone(requests[3]))
    assert engine.statistics().num_blocks_in_use == 0


def test_weights_that_give_nan_end_in_one_line(bench, monkeypatch):
    engine = bench.engine()
    monkeypatch.setattr(engine._runner, "prefill", lambda chunks: np.full((len(chunks), 1024), np.nan, np.float32))
    result = collect(engine, [bench.request(bench.prompt("one"))])[0]
    assert isinstance(result.end.error, ModelError)
    assert result.token_ids == []


@pytest.mark.parametrize("precision", ["float32", "int4", "int8"])
def test_weights_that_overflow_on_the_way_are_no_answer(checkpoint_folder, tmp_path, precision):
    """All of them are finite; what the second layer gets is not."""
    shutil.copytree(checkpoint_folder, tmp_path / "model")
    files = map(SafetensorsFile, (tmp_path / "model").glob("*.safetensors"))
    stored = next(file for file in files if NORM in file.tensors)
    tensors = {name: (entry.dtype, np.array(stored.read(name))) for name, entry in stored.tensors.items()}
    norm = np.ones_like(tensors[NORM][1], np.float32)
    norm[:2] = 3e38
    write_safetensors(stored.path, {**tensors, NORM: ("F32", norm)})
    llm = tianquan.load(tmp_path / "model", precision=precision)
    with pytest.raises(ModelError, match="is not finite"):
        llm.chat([{"role": "user", "content": "hello"}])


def test_an_abort_that_comes_too_late_is_no_work(bench):
    engine = bench.engine()
    engine.abort(12345)
    assert not engine.has_work
    assert engine.statistics().num_waiting == 0


def test_abort_at_any_step_frees_every_block(bench):
    request = bench.request(bench.prompt("word " * 70), max_tokens=30, ignore_eos=True)
    for num_steps in (0, 1, 2, 5, 9):
        engine = bench.engine()
        ids = [engine.add(request) for _ in range(2)]
        for _ in range(num_steps):
            engine.step()
        engine.abort(ids[0])
        engine.abort(ids[0])
        engine.abort(12345)
        ends = [output for output in engine.step() if output.end is not None]
        assert [(output.request_id, output.end.reason) for output in ends] == [(ids[0], "abort")]
        engine.abort(ids[1])
        engine.step()
        assert not engine.has_work
        assert engine.statistics().num_blocks_in_use == 0


def test_memory_is_what_was_asked_for(bench):
    engine = bench.engine(num_blocks=10)
    statistics = engine.statistics()
    assert statistics.num_blocks == 10
    assert statistics.kv_cache_bytes == 10 * bench.block_bytes
    with pytest.raises(PromptError, match="the KV cache holds 320; shorten it, or give more"):
        engine.add(bench.request(bench.prompt("word " * 400)))
    with pytest.raises(ParameterError, match=r"have 5 bytes \(kv_cache_bytes\), which hold 0 tokens; expected at"):
        type(engine)(bench.llm.model, EngineOptions(kv_cache_bytes=5))
    result = collect(engine, [bench.request(bench.prompt("word " * 80), max_tokens=10_000, ignore_eos=True)])[0]
    assert result.end.usage.prompt_tokens + result.end.usage.completion_tokens == 320


@pytest.mark.parametrize("value", ["1G", 2.5, True, -1])
def test_memory_that_is_no_number_of_bytes_is_refused(value):
    for name in ("kv_cache_bytes", "encoder_cache_bytes"):
        with pytest.raises(ParameterError, match=f"{name} must be a number of bytes"):
            EngineOptions(**{name: value})
    with pytest.raises(ParameterError, match="max_memory must be a number of bytes"):
        kv_bytes_within(value, 10, 10)
    with pytest.raises(ParameterError, match="max_running must be an integer of at least 1"):
        SchedulerLimits(max_running=value)


def test_the_encoder_cache_keeps_to_its_bytes(bench):
    size = 64 * bench.llm.model.config.language.hidden_size * 4
    engine = bench.engine(encoder_cache_bytes=2 * size)
    for n, name in enumerate([CAT, DOG, CAT]):
        collect(engine, [bench.request(bench.prompt("x", system=str(n), image=name), max_tokens=1)])
        assert engine.statistics().encoder_cache_bytes <= 2 * size
    none = bench.engine(encoder_cache_bytes=0)
    collect(none, [bench.request(bench.prompt("x", image=CAT))])
    assert none.statistics().encoder_cache_bytes == 0


def test_logprobs_are_the_models(bench):
    prompt = bench.prompt("one two three")
    result = collect(bench.engine(), [bench.request(prompt, logprobs=3, max_tokens=5, ignore_eos=True)])[0]
    assert len(result.logprobs) == len(result.token_ids) == 5
    for token_id, logprob in zip(result.token_ids, result.logprobs, strict=True):
        assert logprob.token_id == token_id
        assert logprob.top[0] == (token_id, logprob.logprob)
        assert [value for _, value in logprob.top] == sorted((v for _, v in logprob.top), reverse=True)
        assert sum(np.exp(value) for _, value in logprob.top) < 1


def test_min_tokens_holds_the_end_back(bench):
    prompt = bench.prompt("one two three")
    free = bench.alone(bench.request(prompt, max_tokens=5, ignore_eos=True)).token_ids
    ends = frozenset(free[:2])
    early = collect(bench.engine(), [bench.request(prompt, stop_token_ids=ends)])[0]
    late = collect(bench.engine(), [bench.request(prompt, stop_token_ids=ends, min_tokens=4)])[0]
    assert len(early.token_ids) == 1
    assert len(late.token_ids) > 4
    assert not ends & set(late.token_ids[:4])


def test_bad_requests_are_refused_at_the_door(bench):
    engine = bench.engine()
    prompt = bench.prompt("one")
    with pytest.raises(PromptError, match="empty"):
        engine.add(bench.request(replace(prompt, token_ids=np.empty(0, np.int32))))
    with pytest.raises(ParameterError, match="names token 5000, the vocabulary has 0 to"):
        engine.add(bench.request(prompt, logit_bias=((5000, 1.0),)))
    assert not engine.has_work


def test_a_prompt_with_an_id_that_is_no_token_is_refused_at_the_door(bench):
    prompt = bench.prompt("hi")
    for bad in (-1, bench.llm.model.config.language.vocab_size):
        wrong = replace(prompt, token_ids=np.append(prompt.token_ids, np.int32(bad)))
        with pytest.raises(PromptError, match=f"has token id {bad}; expected 0 to"):
            bench.engine().add(bench.request(wrong, max_tokens=2))
