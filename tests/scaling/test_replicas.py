from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import openai
import pytest

from tianquan.scaling.front import conversation_of
from tianquan.scaling.replica import ForwardedRequest

BEGINNING = "a beginning that is long enough to fill some blocks of keys and values, so that it can be found again: "


class Endpoint:
    """A server with two replicas in a process of its own."""

    def __init__(self, folder, log):
        self._log = log
        options = ["--precision", "float32", "--threads", "1", "--replicas", "2", "--ray", "local", "--port", "0"]
        command = [sys.executable, "-m", "tianquan", "serve", str(folder), *options, "--shutdown-seconds", "1"]
        with open(log, "wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        port = self.wait_for(r"listening on http://127\.0\.0\.1:(\d+)")[1]
        self.wait_for("ready: .* 2 replicas", 300)
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300)

    def wait_for(self, pattern, seconds=120):
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self._log.read_text(errors="replace"))) is None:
            assert self.process.poll() is None, self._log.read_text(errors="replace")
            assert time.monotonic() < end, self._log.read_text(errors="replace")
            time.sleep(0.05)
        return found

    def chat(self, *texts, **options):
        roles = ["user", "assistant"] * len(texts)
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts)]
        options = {"max_tokens": 6, "temperature": 0, **options}
        return self.client.chat.completions.create(model="checkpoint", messages=messages, **options)

    def replica_of(self, *texts):
        """Return the process that answers a conversation, from the log."""
        answer = self.chat(*texts, max_tokens=1)
        id = answer.id.removeprefix("chatcmpl-")
        line = self.wait_for(rf'\{{"event": "request", "id": "{id}".*\}}')[0]
        return int(json.loads(line)["replica"].rpartition(":")[2])


@pytest.fixture(scope="module")
def endpoint(checkpoint_folder, tmp_path_factory):
    server = Endpoint(checkpoint_folder, tmp_path_factory.mktemp("front") / "log")
    yield server
    server.process.terminate()
    assert server.process.wait(60) == 0


def test_answers_are_those_of_one_model(endpoint, reference_llm):
    from dataclasses import replace

    from tianquan.llm import GREEDY

    said = reference_llm.chat([{"role": "user", "content": "Hello"}], sampling=replace(GREEDY, max_tokens=6))
    assert endpoint.chat("Hello").choices[0].message.content == said.text
    pieces = [chunk.choices[0].delta.content or "" for chunk in endpoint.chat("Hello", stream=True) if chunk.choices]
    assert "".join(pieces) == said.text
    assert len([piece for piece in pieces if piece]) > 1


def test_a_conversation_keeps_its_cache(endpoint):
    replicas = set()
    for n in range(8):
        first = f"{BEGINNING} {n}"
        texts, process = [first], endpoint.replica_of(first)
        replicas.add(process)
        cached = 0
        for turn in range(3):
            answer = endpoint.chat(*texts)
            usage = answer.usage.prompt_tokens_details
            assert turn == 0 or usage.cached_tokens >= cached > 0
            cached = usage.cached_tokens + 1
            texts += [answer.choices[0].message.content or "-", f"and then? {turn}"]
            assert endpoint.replica_of(*texts) == process
    assert len(replicas) == 2  # and they share the conversations


def test_mistakes_are_told_as_without_replicas(endpoint):
    with pytest.raises(openai.BadRequestError, match="temperature must be between"):
        endpoint.chat("Hello", temperature=-1)
    with pytest.raises(openai.NotFoundError, match="no model of this name"):
        endpoint.client.chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])


def test_a_client_that_leaves_ends_its_answer(endpoint):
    stream = endpoint.chat("Tell me", stream=True, max_tokens=3000, extra_body={"ignore_eos": True})
    next(stream)
    stream.close()
    endpoint.wait_for('"status": 499', 60)


def test_a_replica_killed_in_the_middle(endpoint):
    first = f"{BEGINNING} of a stream"
    process = endpoint.replica_of(first)
    stream = endpoint.chat(first, stream=True, max_tokens=3000, extra_body={"ignore_eos": True})
    next(stream)
    os.kill(process, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="the replica that was answering is gone"):
        for _ in stream:
            pass
    assert endpoint.chat(first).choices[0].finish_reason in ("stop", "length")
    assert endpoint.replica_of(first) != process


def test_an_answer_that_has_not_begun_comes_from_another_replica(endpoint):
    endpoint.wait_for("ready")
    first = f"{BEGINNING} of an answer in one piece"
    process = endpoint.replica_of(first)
    threading.Timer(0.3, os.kill, (process, signal.SIGKILL)).start()
    answer = endpoint.chat(first, max_tokens=800, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 800
    endpoint.wait_for("another one is asked", 60)


def request(body, salt=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ForwardedRequest(method="POST", path="/", content_type="", id="", salt=salt, body=data)


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
