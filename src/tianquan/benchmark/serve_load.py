"""Load on a running server with OpenAI's routes, and what its clients see: from another process, over HTTP.

    TTFT   from sending a request to its first token
    TPOT   (end - first token) / (tokens - 1), per request
    ITL    between two events with text; a server may put several tokens in one
    e2e    from sending to the last token
    goodput  requests a second that were answered within the limits given for TTFT and TPOT

Requests arrive at random (Poisson) at a rate, or as soon as one of `concurrency` places is free. Each is text, or has
a picture or a sound made for it, so that no cache knows it. The same seed makes the same requests.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import statistics
import threading
import time
import wave
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from tianquan.errors import ParameterError

Kind = Literal["text", "image", "audio"]
KINDS: tuple[Kind, ...] = ("text", "image", "audio")
_WORDS = ("the", "red", "boat", "sails", "past", "a", "small", "white", "house", "while", "rain", "falls", "here")
_SAMPLE_RATE = 16_000


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What to send.

    url: of the server, with or without /v1.
    model: name; the first of /v1/models by default.
    key: sent as Authorization: Bearer.
    num_requests: most requests; seconds: nothing is sent later than that.
    concurrency: most requests at the same time.
    rate: mean arrivals a second; None = as soon as a place is free.
    mix: weights of text, image and audio requests.
    prompt_words, answer_tokens, image_sides, audio_seconds: (least, most), drawn evenly.
    ignore_eos: ask for answers of exactly the drawn length, where the server knows the field.
    ttft_limit_ms, tpot_limit_ms: of a good request.
    seed: of the random generator.
    timeout_s: for one piece of an answer.
    """

    url: str
    model: str | None = None
    key: str | None = None
    num_requests: int = 100
    seconds: float | None = None
    concurrency: int = 8
    rate: float | None = None
    mix: tuple[float, float, float] = (1.0, 0.0, 0.0)
    prompt_words: tuple[int, int] = (8, 200)
    answer_tokens: tuple[int, int] = (8, 128)
    image_sides: tuple[int, int] = (200, 1000)
    audio_seconds: tuple[int, int] = (1, 15)
    ignore_eos: bool = True
    ttft_limit_ms: float = 5000.0
    tpot_limit_ms: float = 200.0
    seed: int = 0
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.num_requests < 1 or self.concurrency < 1 or (self.rate is not None and self.rate <= 0):
            raise ParameterError("requests and concurrency must be at least 1, the rate above 0")
        if len(self.mix) != len(KINDS) or min(self.mix) < 0 or sum(self.mix) <= 0:
            raise ParameterError("the mix must be three weights, for text, image and audio, not all 0")
        for low, high in (self.prompt_words, self.answer_tokens, self.image_sides, self.audio_seconds):
            if not 1 <= low <= high:
                raise ParameterError("lengths must be two numbers, the least and the most, from 1 up")


@dataclass
class Sample:
    """What one request's client saw. Times are seconds since it was due: sent, unless all places were taken then."""

    kind: Kind
    error: str | None = None
    first: float = 0.0  # text
    last: float = 0.0  # of what the answer is, its end included
    gaps: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_prompt_tokens: int = 0

    @property
    def tpot(self) -> float:
        """Seconds for each token after the first."""
        return (self.last - self.first) / (self.num_tokens - 1) if self.num_tokens > 1 else 0.0


# Requests -------------------------------------------------------------------------------------------------
def make_body(plan: LoadPlan, model: str, n: int) -> tuple[Kind, bytes]:
    """Return request n of a plan."""
    rng = random.Random(plan.seed * 1_000_003 + n)
    kind = rng.choices(KINDS, plan.mix)[0]
    words = [str(rng.getrandbits(20)), *rng.choices(_WORDS, k=rng.randint(*plan.prompt_words))]
    parts: list[dict[str, Any]] = [{"type": "text", "text": " ".join(words)}]
    if kind == "image":
        url = f"data:image/png;base64,{_picture(rng, plan.image_sides)}"
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    elif kind == "audio":
        sound = {"data": _sound(rng, plan.audio_seconds), "format": "wav"}
        parts.insert(0, {"type": "input_audio", "input_audio": sound})
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": parts if kind != "text" else parts[0]["text"]}],
        "max_tokens": rng.randint(*plan.answer_tokens),
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if plan.ignore_eos:
        body["ignore_eos"] = True
    return kind, json.dumps(body).encode()


def _picture(rng: random.Random, sides: tuple[int, int]) -> str:
    """Return a PNG of random coarse squares in base64."""
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (16, 16, 3), np.uint8)
    size = rng.randint(*sides), rng.randint(*sides)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _sound(rng: random.Random, seconds: tuple[int, int]) -> str:
    """Return a WAV of a gliding tone in base64."""
    times = np.arange(rng.randint(*seconds) * _SAMPLE_RATE) / _SAMPLE_RATE
    tone = np.sin(2 * np.pi * (rng.uniform(100, 400) + rng.uniform(0, 50) * times) * times)
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(_SAMPLE_RATE)
        output.writeframes((tone * 12_000).astype(np.int16).tobytes())
    return base64.b64encode(file.getvalue()).decode()


# Clients --------------------------------------------------------------------------------------------------
class LoadClient:
    """Sends the requests of a plan.

    Raises:
        ParameterError: the URL cannot be used, or nothing answers there.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        try:
            parts = urlsplit(plan.url if "://" in plan.url else f"http://{plan.url}")
            port = parts.port
        except ValueError as error:
            raise ParameterError(f"the URL must be http://HOST:PORT ({error})") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ParameterError("the URL must be http://HOST:PORT")
        secure = parts.scheme == "https"
        self._connection = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host, self._port = parts.hostname, port
        path = parts.path.rstrip("/")
        self._path = path if path.endswith("/v1") else f"{path}/v1"
        self._headers = {"Content-Type": "application/json"}
        if plan.key is not None:
            self._headers["Authorization"] = f"Bearer {plan.key}"
        self.model = plan.model or self._first_model()

    def _open(self) -> http.client.HTTPConnection:
        return self._connection(self._host, self._port, timeout=self._plan.timeout_s)

    def _first_model(self) -> str:
        connection = self._open()
        try:
            connection.request("GET", f"{self._path}/models", headers=self._headers)
            response = connection.getresponse()
            data = response.read()
            if response.status != 200:
                raise ParameterError(f"the server answers /v1/models with status {response.status}")
            return str(json.loads(data)["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise ParameterError("no server with OpenAI's routes answers at this URL") from error
        finally:
            connection.close()

    def send(self, kind: Kind, body: bytes, due: float) -> Sample:
        """Send a request that was due at a time of `time.perf_counter`, and read its answer."""
        sample = Sample(kind)
        connection = self._open()
        try:
            connection.request("POST", f"{self._path}/chat/completions", body, self._headers)
            response = connection.getresponse()
            if response.status != 200:
                response.read()
                sample.error = str(response.status)
            else:
                _read_events(response, sample, due)
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            sample.error = type(error).__name__
        finally:
            connection.close()
        return sample


def _read_events(response: http.client.HTTPResponse, sample: Sample, due: float) -> None:
    is_done = False
    for line in response:
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            is_done = True
            break
        now = time.perf_counter() - due
        event = json.loads(line[6:])
        if "error" in event:
            sample.error = "error in the stream"
            return
        if any(choice["delta"].get("content") for choice in event["choices"]):
            sample.num_tokens += 1  # unless the usage says better
            if sample.first:
                sample.gaps.append(now - sample.last)
            else:
                sample.first = now
            sample.last = now
        if any(choice.get("finish_reason") for choice in event["choices"]):
            sample.last = now  # the token that ends an answer counts and has no text
        if event.get("usage"):
            sample.num_tokens = event["usage"]["completion_tokens"]
            sample.num_prompt_tokens = event["usage"]["prompt_tokens"]
    if not is_done:
        sample.error = "the stream ended early"
    elif not sample.first:
        sample.error = "no text"


def run_load(plan: LoadPlan) -> dict[str, Any]:
    """Run a plan and return its report.

    Raises:
        ParameterError: no server answers, or no request was due within the seconds.
    """
    client = LoadClient(plan)
    places = threading.Semaphore(plan.concurrency)
    arrivals = random.Random(plan.seed)
    samples: list[Sample] = []

    def send(kind: Kind, body: bytes, due: float | None) -> None:
        try:
            samples.append(client.send(kind, body, time.perf_counter() if due is None else due))
        finally:
            places.release()

    began = time.perf_counter()
    with ThreadPoolExecutor(plan.concurrency) as pool:
        due = None if plan.rate is None else began
        for n in range(plan.num_requests):
            kind, body = make_body(plan, client.model, n)
            if due is not None and plan.rate is not None:
                due += arrivals.expovariate(plan.rate)
                if plan.seconds is not None and due - began > plan.seconds:
                    break
                time.sleep(max(0.0, due - time.perf_counter()))
            places.acquire()
            if plan.seconds is not None and time.perf_counter() - began > plan.seconds:
                places.release()
                break
            pool.submit(send, kind, body, due)
    if not samples:
        raise ParameterError(f"no request was due within {plan.seconds:g} s at {plan.rate:g} a second; give it longer")
    return summarize(plan, samples, time.perf_counter() - began)


# Report ---------------------------------------------------------------------------------------------------
def summarize(plan: LoadPlan, samples: list[Sample], seconds: float) -> dict[str, Any]:
    """Return the numbers of a run: of all requests, and of each kind that was sent."""
    kinds = [kind for kind in KINDS if any(sample.kind == kind for sample in samples)]
    return {
        "seconds": round(seconds, 3),
        "concurrency": plan.concurrency,
        "rate": plan.rate,
        "all": _numbers(plan, samples, seconds),
        **{kind: _numbers(plan, [sample for sample in samples if sample.kind == kind], seconds) for kind in kinds},
    }


def _numbers(plan: LoadPlan, samples: list[Sample], seconds: float) -> dict[str, Any]:
    done = [sample for sample in samples if sample.error is None]
    good = [
        sample
        for sample in done
        if 1000 * sample.first <= plan.ttft_limit_ms and 1000 * sample.tpot <= plan.tpot_limit_ms
    ]
    return {
        "requests": len(samples),
        "errors": dict(Counter(sample.error for sample in samples if sample.error is not None)),
        "requests_per_second": round(len(done) / seconds, 3),
        "goodput_per_second": round(len(good) / seconds, 3),
        "prompt_tokens": sum(sample.num_prompt_tokens for sample in done),
        "answer_tokens": sum(sample.num_tokens for sample in done),
        "answer_tokens_per_second": round(sum(sample.num_tokens for sample in done) / seconds, 3),
        "ttft_ms": _percentiles([sample.first for sample in done]),
        "tpot_ms": _percentiles([sample.tpot for sample in done if sample.num_tokens > 1]),
        "itl_ms": _percentiles([gap for sample in done for gap in sample.gaps]),
        "e2e_ms": _percentiles([sample.last for sample in done]),
    }


def _percentiles(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    points = {f"p{share}": ordered[min(len(ordered) - 1, share * len(ordered) // 100)] for share in (50, 95, 99)}
    return {name: round(1000 * value, 2) for name, value in {"mean": statistics.fmean(ordered), **points}.items()}


def to_markdown(report: dict[str, Any]) -> str:
    """Return a report as a Markdown table."""
    head = "| requests | n | errors | answers/s | good/s | tokens/s | TTFT p50/p95/p99 ms | TPOT | ITL | e2e |"
    lines = [head, "|" + "---|" * 10]
    for name in ("all", *(kind for kind in KINDS if kind in report)):
        row = report[name]
        times = [_shown(row[key]) for key in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")]
        errors = ", ".join(f"{count} x {error}" for error, count in row["errors"].items()) or "0"
        rates = (row["requests_per_second"], row["goodput_per_second"], row["answer_tokens_per_second"])
        cells = [name, row["requests"], errors, *(f"{rate:.2f}" for rate in rates), *times]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _shown(points: dict[str, float] | None) -> str:
    return "-" if points is None else " / ".join(f"{points[name]:.0f}" for name in ("p50", "p95", "p99"))
