"""Answers from several threads over one engine: text, stop strings, early ends, and failures of the engine."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

import tianquan
from tianquan.answer import last
from tianquan.engine.interface import EngineOptions
from tianquan.errors import ModelError, ParameterError
from tianquan.llm import GREEDY

MESSAGES = [{"role": "user", "content": "Hello, please count: 一二三."}]
LONG = replace(GREEDY, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(checkpoint_folder):
    return tianquan.load(checkpoint_folder, precision="float32")


def wait_until_idle(llm, seconds=20):
    until = time.monotonic() + seconds
    while llm.driver.engine.has_work:
        assert time.monotonic() < until, "the engine still works"
        time.sleep(0.01)


def test_threads_get_what_each_gets_alone(llm):
    conversations = [[{"role": "user", "content": f"Number {n} says hello."}] for n in range(8)]
    alone = [llm.chat(messages, sampling=LONG).text for messages in conversations]
    got = [None] * 8

    def ask(n):
        got[n] = llm.chat(conversations[n], sampling=LONG).text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == alone


@pytest.mark.parametrize("speculation", [False, True])
def test_a_stop_string_ends_the_request_in_the_engine(checkpoint_folder, speculation):
    llm = tianquan.load(checkpoint_folder, precision="float32", engine=EngineOptions(speculation=speculation))
    whole = llm.chat(MESSAGES, sampling=replace(LONG, repetition_penalty=0.3))
    stop = whole.text[15:19]
    cut = llm.chat(MESSAGES, sampling=replace(LONG, repetition_penalty=0.3, stop=(stop, "never said")))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert len(cut.token_ids) < len(whole.token_ids)


@pytest.mark.parametrize("end", ["close", "drop"])
def test_an_answer_left_early_frees_its_blocks(llm, end):
    answer = llm.stream_chat(MESSAGES, sampling=replace(LONG, max_tokens=3000))
    next(answer)
    if end == "close":
        answer.close()
        assert list(answer) == []
    else:
        del answer
        gc.collect()
    wait_until_idle(llm)
    assert llm.statistics().num_blocks_in_use == 0


def test_the_thread_ends_with_the_work(llm):
    llm.chat(MESSAGES, sampling=LONG)
    until = time.monotonic() + 10
    while any(thread.name == "tianquan-engine" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_broken_engine_ends_all_answers_and_starts_anew(checkpoint_folder, monkeypatch, caplog):
    llm = tianquan.load(checkpoint_folder, precision="float32")
    expected = llm.chat(MESSAGES, sampling=LONG).text

    def explode(*_):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(llm.driver.engine._scheduler, "schedule", explode)
    with pytest.raises(ModelError, match="the engine failed and was started anew"):
        llm.chat(MESSAGES, sampling=LONG)
    assert "a bug of ours" in caplog.text
    assert llm.chat(MESSAGES, sampling=LONG).text == expected


def test_a_thread_that_cannot_be_made_is_told_and_tried_again(checkpoint_folder, monkeypatch):
    llm = tianquan.load(checkpoint_folder, precision="float32")

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ModelError, match="no thread to run on"):
        llm.chat(MESSAGES, sampling=LONG)
    monkeypatch.undo()
    assert llm.chat(MESSAGES, sampling=LONG).text
    wait_until_idle(llm)


def test_an_engine_that_cannot_be_started_anew_is_told_to_every_caller(checkpoint_folder, monkeypatch):
    llm = tianquan.load(checkpoint_folder, precision="float32")
    engine = llm.driver.engine
    schedule = engine._scheduler.schedule
    monkeypatch.setattr(engine._scheduler, "schedule", lambda *_: 1 / 0)
    monkeypatch.setattr(engine, "started_anew", lambda: 1 / 0)
    for _ in range(2):
        with pytest.raises(ModelError, match="could not be started anew"):
            llm.chat(MESSAGES, sampling=LONG)
    monkeypatch.setattr(engine._scheduler, "schedule", schedule)
    assert llm.chat(MESSAGES, sampling=LONG).text


def test_nobody_waits_for_a_thread_that_ended(checkpoint_folder, monkeypatch):
    llm = tianquan.load(checkpoint_folder, precision="float32")

    def leave(*_):
        raise SystemExit("of a library")

    monkeypatch.setattr(llm.driver.engine._scheduler, "schedule", leave)
    for _ in range(2):
        with pytest.raises(ModelError, match="the engine was stopped"):
            llm.chat(MESSAGES, sampling=LONG)


def test_ids_of_a_broken_engine_name_no_request_of_the_next(checkpoint_folder, monkeypatch):
    llm = tianquan.load(checkpoint_folder, precision="float32")
    broken = llm.driver.engine
    monkeypatch.setattr(broken._scheduler, "schedule", lambda *_: 1 / 0)
    lost = llm.stream_chat(MESSAGES, sampling=LONG)
    while llm.driver.engine is broken:
        time.sleep(0.01)
    answer = llm.stream_chat(MESSAGES, sampling=LONG)
    lost.close()
    assert last(answer).finish_reason == "length"


def test_a_listener_that_fails_ends_its_own_request(llm, caplog):
    prompt = llm.checkpoint.processor(MESSAGES)
    from tianquan.engine.interface import EngineRequest

    llm.driver.submit(EngineRequest(prompt=prompt, sampling=LONG), lambda output: 1 / 0, print)
    assert llm.chat(MESSAGES, sampling=LONG).usage.completion_tokens == 40
    wait_until_idle(llm)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1])
def test_a_process_may_end_while_the_engine_works(checkpoint_folder, delay):
    """Ending took the process down when kernels still ran: 15 of 20 tries crashed before the thread was stopped."""
    code = f"""
import sys, time, tianquan
llm = tianquan.load({str(checkpoint_folder)!r}, precision="float32")
sampling = tianquan.SamplingParams(max_tokens=2000, ignore_eos=True)
answer = llm.stream_chat([{{"role": "user", "content": "hello " * 900}}], sampling=sampling)
time.sleep({delay})
sys.exit(3)
"""
    for _ in range(2):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
        assert result.returncode == 3, result.stderr


def test_logprobs_come_with_the_answer(llm):
    completion = llm.chat(MESSAGES, sampling=replace(LONG, max_tokens=5, logprobs=2))
    assert [entry.token_id for entry in completion.logprobs] == completion.token_ids


def test_bad_parameters_are_refused_before_anything_runs(llm):
    before = llm.statistics().num_steps
    for params in ({"n": 10**9}, {"max_tokens": -5}, {"stop": ("x",) * 10**6}, {"logit_bias": ((10**9, 1.0),)}):
        with pytest.raises(ParameterError):
            llm.chat(MESSAGES, sampling=replace(GREEDY, **params))
    assert llm.statistics().num_steps == before


def test_memory_is_flat_over_a_thousand_requests(checkpoint_folder):
    """Blocks, features, queues and threads of a thousand mixed requests: what is held stays within its bounds."""
    llm = tianquan.load(
        checkpoint_folder,
        precision="float32",
        engine=EngineOptions(kv_cache_bytes=2**20, encoder_cache_bytes=2**17),
    )
    sizes = []
    for n in range(1000):
        answer = llm.stream_chat(
            [{"role": "user", "content": f"{n} hello " * (n % 12 + 1)}], sampling=replace(LONG, max_tokens=n % 2 + 1)
        )
        if n % 5 == 0:
            answer.close()
        else:
            list(answer)
        if n in (500, 999):
            wait_until_idle(llm)
            gc.collect()
            sizes.append(len(gc.get_objects()))
    statistics = llm.statistics()
    assert statistics.num_blocks_in_use == 0
    assert sum(statistics.ended.values()) == 1000
    assert sizes[1] < sizes[0] * 1.02 + 2000
