"""Many at once, and clients that go away: nothing is lost, mixed, stuck or leaked."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from running_server import HASTY, running, wait_until
from tianquan.request import SamplingParams
from tianquan.serving.admission import Admission
from tianquan.serving.api_error import ApiError
from tianquan.serving.config import ServeConfig
from tianquan.serving.routes import build_app
from tianquan.serving.service import Service


def test_200_at_once_into_a_queue_of_16(serve, served_llm):
    """4 run and 16 wait; the other 180 hear 429 at once. Each answer is the one its own prompt gets alone."""
    answers = {}
    for word in "abcdefgh":
        messages = [{"role": "user", "content": f"tell {word}"}]
        answers[word] = served_llm.chat(messages, sampling=SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    start = threading.Barrier(200)

    with serve(max_num_seqs=4, max_queue=16) as server:

        def ask(n):
            word = "abcdefgh"[n % 8]
            start.wait()
            return word, server.chat(f"tell {word}", max_tokens=8, ignore_eos=True)

        with blocked_engine(server), ThreadPoolExecutor(200) as pool:
            futures = [pool.submit(ask, n) for n in range(200)]
            wait_until(lambda: sum(future.done() for future in futures) >= 180)
            assert server.service.admission.num_taken == 20
            release(server)
            replies = [future.result(30) for future in futures]
        by_status = {status: [r for r in replies if r[1].status == status] for status in (200, 429)}
        assert len(by_status[200]) == 20
        assert len(by_status[429]) == 180
        for word, reply in by_status[200]:
            assert reply.json["choices"][0]["message"]["content"] == answers[word].text
        for _, reply in by_status[429]:
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            assert reply.error["type"] == "rate_limit_error"
        wait_until(server.is_idle)
        assert server.chat().status == 200


@contextlib.contextmanager
def blocked_engine(server):
    """Hold the engine between two steps, so that nothing ends before everybody has asked."""
    engine = server.engine
    step, gate = engine.step, threading.Event()

    def wait_and_step():
        gate.wait(20)
        return step()

    engine.step, engine.gate = wait_and_step, gate
    try:
        yield
    finally:
        gate.set()
        del engine.step, engine.gate


def release(server):
    server.engine.gate.set()


def test_media_are_prepared_off_the_event_loop(server, monkeypatch):
    """While a picture is decoded, which may take seconds, others are answered."""
    decoding, done = threading.Event(), threading.Event()
    original = server.service.chat_prompt

    def slow(messages, policy=None):
        if messages[0]["content"] == "slow":
            decoding.set()
            assert done.wait(20)
        return original(messages, policy)

    monkeypatch.setattr(server.service, "chat_prompt", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.chat, "slow")
        assert decoding.wait(10)
        assert server.get("/health").status == 200
        assert server.chat("quick").status == 200
        assert not first.done()
        done.set()
        assert first.result(20).status == 200


def test_places_for_n_answers_are_taken_together(serve):
    with serve(max_num_seqs=2, max_queue=2) as server:
        assert server.chat(n=4, temperature=1, max_tokens=2).status == 200
        assert server.chat(n=5, temperature=1).status == 400  # could never be
        with blocked_engine(server), ThreadPoolExecutor(1) as pool:
            two = pool.submit(server.chat, n=2, temperature=1)
            wait_until(lambda: server.service.admission.num_taken == 2)
            assert server.chat(n=3, temperature=1).status == 429
            release(server)
            assert two.result(20).status == 200
        wait_until(server.is_idle)


def begin(server, stream, **fields):
    connection = server.connection()
    body = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 3000, "ignore_eos": True, **fields}
    connection.request(
        "POST", "/v1/chat/completions", json.dumps({**body, "stream": stream}), {"Content-Type": "application/json"}
    )
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_everything(server, stream):
    aborted = server.engine.statistics().ended.get("abort", 0)
    connection = begin(server, stream)
    if stream:
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
    wait_until(lambda: server.engine.statistics().num_running == 1)
    assert server.engine.statistics().num_blocks_in_use > 0
    connection.close()
    if stream:
        response.close()
    wait_until(server.is_idle)
    assert server.engine.statistics().ended["abort"] == aborted + 1


def test_a_client_that_goes_away_while_it_waits_frees_its_place(serve):
    with serve(max_num_seqs=4, max_queue=4) as server, blocked_engine(server):
        connections = [begin(server, True) for _ in range(8)]
        wait_until(lambda: server.service.admission.num_taken == 8)
        for connection in connections:
            connection.close()
        wait_until(lambda: server.service.admission.num_taken == 0)
        release(server)
        wait_until(server.is_idle)


def test_half_a_body_frees_its_place(server):
    raw = socket.create_connection(("127.0.0.1", server.port), 5)
    raw.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 1000\r\n\r\n{"'
    )
    wait_until(lambda: server.service.admission.num_taken == 1)
    raw.close()
    wait_until(server.is_idle)


def test_a_client_that_reads_nothing_is_dropped(served_llm):
    """At the ASGI border: sockets of this machine would swallow megabytes first."""
    service = Service(ServeConfig(served_model_name="tiny", patience=HASTY))
    service.set_ready(served_llm)
    app = build_app(service)
    body = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 3000, "ignore_eos": True, "stream": True}
    dropped = []

    async def run():
        never = asyncio.Event()
        inbox = [{"type": "http.request", "body": json.dumps(body).encode()}]

        async def receive():
            if inbox:
                return inbox.pop()
            await never.wait()
            raise AssertionError

        async def send(message):
            if message["type"] == "http.response.body":
                await never.wait()

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "tianquan.abort": lambda: dropped.append(True),
        }
        await asyncio.wait_for(app(scope, receive, send), 10)

    asyncio.run(run())
    assert dropped == [True]
    wait_until(lambda: not served_llm.driver.engine.has_work)
    assert served_llm.statistics().num_blocks_in_use == 0
    assert service.admission.num_taken == 0


def test_pings_while_nothing_comes(serve):
    with serve(patience=HASTY) as server, blocked_engine(server):
        connection = begin(server, True, max_tokens=2)
        response = connection.getresponse()
        assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
        assert response.readline() == b": ping\n"
        release(server)
        data = response.read()
        assert data.endswith(b"data: [DONE]\n\n")
        connection.close()


def test_characters_are_never_cut(server, served_llm):
    """Each event by itself is UTF-8, and what they say joins to the whole."""
    for seed in range(5):
        fields = {"temperature": 3.0, "seed": seed, "max_tokens": 60, "ignore_eos": True, "top_k": 0, "top_p": 1}
        whole = server.chat("你好", **fields).json["choices"][0]["message"]["content"]
        reply = server.chat("你好", stream=True, **fields)
        for line in reply.data.split(b"\n\n"):
            line.decode()
        pieces = [event["choices"][0]["delta"].get("content") or "" for event in reply.events]
        assert "".join(pieces) == whole


def test_an_error_in_the_middle_is_an_event(server, monkeypatch):
    count = []

    def fail(self, *args):
        count.append(1)
        if len(count) > 3:
            raise RuntimeError("internal detail")
        return original(self, *args)

    from tianquan.engine import engine as module

    original = module.Engine._choose_one
    monkeypatch.setattr(module.Engine, "_choose_one", fail)
    reply = server.chat(stream=True, max_tokens=50, ignore_eos=True)
    assert reply.status == 200
    assert reply.events[-1]["error"]["type"] == "server_error"
    assert b"internal detail" not in reply.data
    monkeypatch.undo()
    wait_until(server.is_idle)
    assert server.chat().status == 200


def test_mixed_requests_side_by_side_are_what_they_are_alone(server, data_url, media_root):
    import base64

    image = {"type": "image_url", "image_url": {"url": data_url("tiny_100x60.png"), "detail": "low"}}
    sound = base64.b64encode((media_root / "speech_1s_16k.wav").read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    contents = ["hello", [image], [audio], [image, audio, {"type": "text", "text": "both"}]]

    def ask(content):
        reply = server.chat(content, max_tokens=12, ignore_eos=True)
        assert reply.status == 200
        return reply.json["choices"][0]["message"]["content"]

    alone = [ask(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, contents * 4))
    assert together == alone * 4


# Start and stop -------------------------------------------------------------------------------------------
def test_while_loading(served_llm):
    ready = threading.Event()

    def load():
        ready.wait(20)
        return served_llm

    with running(served_llm, load=load) as server:
        for reply in (server.get("/health"), server.chat(), server.get("/v1/models"), server.get("/metrics")):
            assert reply.status == 503
            assert reply.error["code"] == "loading"
            assert reply.headers["retry-after"]
        ready.set()
        wait_until(lambda: server.get("/health").status == 200)
        assert server.chat().status == 200


def test_a_model_that_cannot_be_loaded_ends_the_server(served_llm):
    from tianquan.errors import CheckpointError
    from tianquan.serving.server import RunningServer

    def load():
        raise CheckpointError("nothing here")

    server = RunningServer(ServeConfig(port=0, served_model_name="tiny"), load)
    with pytest.raises(CheckpointError, match="nothing here"):
        server.run()


def test_stopping_lets_running_requests_finish(served_llm):
    with running(served_llm, shutdown_seconds=10) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.chat, max_tokens=150, ignore_eos=True)
        wait_until(lambda: server.engine.statistics().num_running == 1)
        server.server.stop()
        assert answer.result(20).json["usage"]["completion_tokens"] == 150


def test_stopping_aborts_what_takes_too_long(served_llm):
    began = time.monotonic()
    with running(served_llm, shutdown_seconds=0) as server:
        connection = begin(server, True)
        response = connection.getresponse()
        response.readline()
        server.server.stop()
        with contextlib.suppress(http.client.HTTPException, OSError):
            response.read()
        connection.close()
    assert time.monotonic() - began < 8
    wait_until(lambda: not served_llm.driver.engine.has_work)
    assert served_llm.statistics().num_blocks_in_use == 0


@pytest.mark.parametrize("stream", [False, True])
def test_who_is_cut_off_by_a_stop_is_told(served_llm, stream):
    with running(served_llm, shutdown_seconds=0) as server:
        connection = begin(server, stream)
        if stream:
            response = connection.getresponse()
            response.readline()
        else:
            wait_until(lambda: server.engine.statistics().num_running == 1)
        server.server.stop()
        if not stream:
            response = connection.getresponse()
        body = response.read().decode()
        connection.close()
    assert response.status == (200 if stream else 503)
    assert response.headers["x-request-id"]
    if stream:
        *_, event, end = (line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: "))
        assert end == "[DONE]"
        body = event
    assert json.loads(body)["error"]["code"] == "stopping"


def test_a_recording_nobody_waits_for_is_not_decoded(serve, media_root, monkeypatch):
    """It waits for memory that others hold; its place is free as soon as its client is gone."""
    decoded = []
    with serve() as server:
        monkeypatch.setattr(server.service.llm.processor, "load_clips", lambda *_, **__: decoded.append(1) or [])
        budget = server.service.decoded_seconds
        budget._held = budget._amount  # as if others were being decoded
        body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        body += (media_root / "speech_1s_16k.wav").read_bytes() + b"\r\n--x--\r\n"
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        connection.request("POST", "/v1/audio/transcriptions", body, kind)
        wait_until(lambda: server.service.admission.num_taken == 1)
        wait_until(lambda: server.service.admission.num_bytes == len(body))
        connection.close()
        wait_until(lambda: server.service.admission.num_taken == 0)
        assert server.service.admission.num_bytes == 0
        budget._held = 0.0
        assert decoded == []


def test_the_bytes_of_a_request_count_until_its_client_has_the_answer():
    admission = Admission(max_running=1, max_queue=0, max_bytes=100)
    with admission.enter() as place:
        place.hold(90)
        place.give_back()
        assert (admission.num_taken, admission.num_bytes) == (0, 90)
        with admission.enter() as second, pytest.raises(ApiError) as full:
            second.hold(20)
        assert full.value.status == 429
    assert (admission.num_taken, admission.num_bytes) == (0, 0)


def test_a_taken_port_is_one_clear_error(served_llm, server):
    from tianquan.errors import ParameterError

    with pytest.raises(ParameterError, match="--port"), running(served_llm, port=server.port):
        pass
