"""The load generator against a small server: what it counts is what the server did."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import command_line
import tianquan
from running_server import running
from tianquan.benchmark.serve_load import LoadPlan, Sample, make_body, run_load, summarize
from tianquan.cli.bench import _with_suffix
from tianquan.errors import ParameterError

SMALL = {"prompt_words": (2, 8), "answer_tokens": (2, 6), "image_sides": (20, 60), "audio_seconds": (1, 1)}


def test_from_a_second_process(checkpoint_folder):
    llm = tianquan.load(checkpoint_folder, precision="float32", backend="native", threads=1)
    with running(llm, max_num_seqs=4) as server:
        pairs = [item for name, pair in SMALL.items() for item in (f"--{name.replace('_', '-')}", *map(str, pair))]
        result = command_line.run(
            *("bench", "serve", f"http://127.0.0.1:{server.port}", "--requests", "12", "--concurrency", "4"),
            *("--mix", "2", "1", "1", "--rate", "200", "--json", *pairs),
        )
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        everything = report["all"]
        assert everything["requests"] == 12
        assert everything["errors"] == {}
        assert everything["answer_tokens"] == llm.statistics().generated_tokens
        assert sum(report[kind]["requests"] for kind in ("text", "image", "audio") if kind in report) == 12
        assert everything["ttft_ms"]["p50"] <= everything["ttft_ms"]["p99"] <= everything["e2e_ms"]["p99"]


def test_the_same_seed_makes_the_same_requests():
    plan = LoadPlan(url="http://x", mix=(1, 1, 1), **SMALL)
    first = [make_body(plan, "m", n) for n in range(6)]
    assert first == [make_body(plan, "m", n) for n in range(6)]
    assert len({body for _, body in first}) == 6


def test_errors_and_late_answers_are_not_good():
    plan = LoadPlan(url="http://x", ttft_limit_ms=100, tpot_limit_ms=10)
    good = Sample("text", first=0.05, last=0.13, num_tokens=10)
    late = Sample("text", first=0.5, last=0.58, num_tokens=10)
    slow = Sample("text", first=0.05, last=1.0, num_tokens=10)
    lost = Sample("text", error="429")
    numbers = summarize(plan, [good, late, slow, lost], 2.0)["all"]
    assert numbers["goodput_per_second"] == 0.5
    assert numbers["requests_per_second"] == 1.5
    assert numbers["errors"] == {"429": 1}
    assert numbers["answer_tokens_per_second"] == 15


@contextmanager
def streaming(*events: tuple[float, dict]) -> Iterator[str]:
    """A server whose every answer is these events, each after some seconds."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._begin()
            self.wfile.write(b'{"data": [{"id": "m"}]}')

        def do_POST(self) -> None:
            self._begin()
            self.rfile.read(int(self.headers["Content-Length"]))
            for seconds, choice in events:
                time.sleep(seconds)
                usage = {"completion_tokens": 3, "prompt_tokens": 5}
                self.wfile.write(b"data: " + json.dumps({"choices": [choice], "usage": usage}).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

        def _begin(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


TEXT, END = {"delta": {"content": "a"}}, {"delta": {}, "finish_reason": "stop"}


def test_the_token_that_ends_an_answer_has_its_time():
    with streaming((0, TEXT), (0.05, TEXT), (0.05, END)) as url:
        row = run_load(LoadPlan(url=url, num_requests=1))["all"]
    assert row["answer_tokens"] == 3
    assert row["tpot_ms"]["p50"] >= 50  # of two tokens in a tenth of a second
    assert row["e2e_ms"]["p50"] >= 100


def test_an_answer_without_text_is_an_error_not_the_fastest():
    with streaming((0.02, {"delta": {"reasoning_content": "a"}}), (0, END)) as url:
        row = run_load(LoadPlan(url=url, num_requests=2))["all"]
    assert row["errors"] == {"no text": 2}
    assert row["ttft_ms"] is None
    assert row["goodput_per_second"] == 0


def test_seconds_bound_the_waiting_for_arrivals_too():
    with streaming((0, TEXT), (0, END)) as url:
        began = time.monotonic()
        with pytest.raises(ParameterError, match=r"no request was due within 0\.2 s at 0\.01 a second"):
            run_load(LoadPlan(url=url, rate=0.01, seconds=0.2))
        assert time.monotonic() - began < 5


def test_waiting_for_a_place_is_part_of_what_a_client_sees():
    with streaming((0.1, TEXT), (0, END)) as url:
        row = run_load(LoadPlan(url=url, num_requests=4, concurrency=1, rate=1e6))["all"]
    assert row["ttft_ms"]["p99"] >= 350  # the last of four in turn


def test_no_server_is_one_clear_line():
    command_line.assert_refused(command_line.run("bench", "serve", "http://127.0.0.1:9"), "no server")
    command_line.assert_refused(command_line.run("bench", "serve", "ftp://x"), "http://")
    command_line.assert_refused(command_line.run("bench", "serve", "http://localhost:99999"), "http://HOST:PORT")
    command_line.assert_refused(command_line.run("bench", "serve", "http://[::1"), "http://HOST:PORT")
    command_line.assert_refused(command_line.run("bench", "--output", "q", "serve", "http://x"), "output", "of its own")


def test_a_plot_and_results_need_a_name_of_a_file():
    command_line.assert_refused(command_line.run("bench", "--plot"), "--output")
    command_line.assert_refused(command_line.run("bench", "--output", "."), "is a folder")


def test_dots_in_the_name_of_results_stay():
    assert [_with_suffix(Path(name), ".json").name for name in ("v1.1", "v1.2")] == ["v1.1.json", "v1.2.json"]
