from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from scaling.endpoint import Endpoint
from scaling.ray_processes import PATIENCE
from tianquan.llm import GREEDY
from tianquan.scaling.front import conversation_of
from tianquan.scaling.replica import ForwardedRequest
from tianquan.serving.api_error import ApiError

BEGINNING = "a beginning that is long enough to fill some blocks of keys and values, so that it can be found again: "
LONG_ANSWER = 3000  # tokens


@pytest.fixture(scope="module")
def endpoint(checkpoint_folder, tmp_path_factory):
    server = Endpoint(checkpoint_folder, tmp_path_factory.mktemp("front") / "log", "--replicas", "2")
    yield server
    server.stop()


def test_answers_are_those_of_one_model(endpoint, reference_llm):
    said = reference_llm.chat([{"role": "user", "content": "Hello"}], sampling=replace(GREEDY, max_tokens=6))
    assert endpoint.chat("Hello").choices[0].message.content == said.text
    pieces = [chunk.choices[0].delta.content or "" for chunk in endpoint.chat("Hello", stream=True) if chunk.choices]
    assert "".join(pieces) == said.text
    assert len([piece for piece in pieces if piece]) > 1


def test_health_and_models_are_answered(endpoint):
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/health", timeout=PATIENCE) as response:
        assert response.status == 200
    assert [model.id for model in endpoint.client.models.list()] == ["checkpoint"]


def test_a_conversation_keeps_its_cache(endpoint):
    endpoint.wait_for_replicas(2)
    for n in range(8):
        first = f"{BEGINNING} {n}"
        texts, process = [first], endpoint.replica_of(first)
        cached = 0
        for turn in range(3):
            answer = endpoint.chat(*texts)
            usage = answer.usage.prompt_tokens_details
            assert turn == 0 or usage.cached_tokens >= cached > 0
            cached = usage.cached_tokens + 1
            texts += [answer.choices[0].message.content or "-", f"and then? {turn}"]
            assert endpoint.replica_of(*texts) == process


def test_mistakes_are_told_as_without_replicas(endpoint):
    with pytest.raises(openai.BadRequestError, match="temperature must be between"):
        endpoint.chat("Hello", temperature=-1)
    with pytest.raises(openai.NotFoundError, match="no model of this name"):
        endpoint.client.chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])


def test_a_client_that_leaves_ends_its_answer(endpoint):
    before = len(endpoint.said())
    endpoint.long_stream("Tell me").close()
    endpoint.wait_for('"status": 499', before)


def test_a_replica_killed_in_the_middle(endpoint):
    first = f"{BEGINNING} of a stream"
    endpoint.wait_for_replicas(2)
    process = endpoint.replica_of(first)
    stream = endpoint.long_stream(first)
    os.kill(process, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="the replica that was answering is gone"):
        for _ in stream:
            pass
    assert endpoint.chat(first).choices[0].finish_reason in ("stop", "length")
    assert endpoint.replica_of(first) != process


def test_an_answer_that_has_not_begun_comes_from_another_replica(endpoint):
    first = f"{BEGINNING} of an answer in one piece"
    endpoint.wait_for_replicas(2)
    process, before = endpoint.replica_of(first), len(endpoint.said())
    killer = threading.Thread(target=kill_at_work, args=(process,))
    killer.start()
    answer = endpoint.chat(first, max_tokens=LONG_ANSWER, extra_body={"ignore_eos": True})
    killer.join()
    assert answer.usage.completion_tokens == LONG_ANSWER
    endpoint.wait_for("another one is asked", before)


def kill_at_work(process):
    """Kill a process once it has computed for a moment from now on: the answer is begun then, and far from its end."""
    end = time.monotonic() + PATIENCE
    start = processor_seconds(process)
    while processor_seconds(process) < start + 0.5 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)


def processor_seconds(process):
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # in user mode and in the kernel


def request(body, salt=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ForwardedRequest(method="POST", path="/", content_type="application/json", id="", salt=salt, body=data)


def test_what_makes_a_conversation():
    system, hello = {"role": "system", "content": "a"}, {"role": "user", "content": "hello"}
    later = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    first = conversation_of(request({"messages": [system, hello]}))
    assert conversation_of(request({"messages": [system, hello, *later], "temperature": 0})) == first
    assert conversation_of(request({"messages": [hello]})) != first
    assert conversation_of(request({"messages": [system, hello]}, "key-1")) != first
    for body in (b"{", b"[]", b"7", {"messages": 3}, {"messages": [3]}, {"prompt": 7}, {}, b"[" * 100_000):
        assert conversation_of(request(body)) != conversation_of(request(body))
    assert conversation_of(request({"prompt": "once"})) == conversation_of(request({"prompt": "once"}))
    with pytest.raises(ApiError, match="commas and opening brackets"):  # before it is parsed
        conversation_of(request(b'{"messages":[' + b"[]," * 500_000 + b"[]]}"))
