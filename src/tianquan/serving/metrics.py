"""Counters and histograms in Prometheus' text format, under vLLM's stems.

Written by hand: the format is a few lines, and a counter is an addition. Used on the event loop only.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tianquan.engine.interface import EngineStatistics, RequestEnd

PREFIX = "tianquan:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """Counts of observations up to each bound.

    Args:
        name: without the prefix.
        meaning: one line.
        bounds: upper bounds, ascending.
    """

    def __init__(self, name: str, meaning: str, bounds: tuple[float, ...] = _SECONDS) -> None:
        self._name = PREFIX + name
        self._meaning = meaning
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, num: int = 1) -> None:
        """Count `num` observations of a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += num
        self._sum += value * num

    def lines(self) -> Iterator[str]:
        """Yield the text form."""
        yield f"# HELP {self._name} {self._meaning}"
        yield f"# TYPE {self._name} histogram"
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            label = "+Inf" if bound == float("inf") else repr(bound)
            yield f'{self._name}_bucket{{le="{label}"}} {total}'
        yield f"{self._name}_sum {self._sum!r}"
        yield f"{self._name}_count {total}"


class Metrics:
    """What the server observed."""

    def __init__(self) -> None:
        self.first_token = Histogram("time_to_first_token_seconds", "From the request's arrival to its first token.")
        self.inter_token = Histogram("inter_token_latency_seconds", "Between two tokens.", _TOKEN_SECONDS)
        self.end_to_end = Histogram("e2e_request_latency_seconds", "From the request's arrival to its last token.")
        self.queue = Histogram("request_queue_time_seconds", "Between arrival in the engine and the first work.")
        self.vision = Histogram("vision_encode_seconds", "Encoding the pictures of a request, when there were any.")
        self.audio = Histogram("audio_encode_seconds", "Encoding the sound of a request, when there was any.")
        self._finished: Counter[str] = Counter()
        self._responses: Counter[tuple[str, int]] = Counter()

    def record_end(self, end: RequestEnd, seconds: float) -> None:
        """Count an answer that ended."""
        self._finished[end.reason] += 1
        self.end_to_end.observe(seconds)
        timings = end.timings
        self.queue.observe(timings.queue_ms / 1000)
        for histogram, milliseconds in ((self.vision, timings.vision_ms), (self.audio, timings.audio_ms)):
            if milliseconds:
                histogram.observe(milliseconds / 1000)

    def aborted(self) -> None:
        """Count an answer whose client went away."""
        self._finished["abort"] += 1

    def record_response(self, route: str, status: int) -> None:
        """Count a response."""
        self._responses[route, status] += 1

    def text(self, engine: EngineStatistics, num_preparing: int, models: Sequence[str]) -> str:
        """Return everything in Prometheus' text format.

        Args:
            engine: its snapshot, of several the sums.
            num_preparing: requests that hold a place and are not in the engine yet or any more.
            models: the names that are served.
        """
        lines: list[str] = []
        waiting = engine.num_waiting + num_preparing
        for name, kind, meaning, value in (
            ("num_requests_running", "gauge", "Answers being computed.", engine.num_running),
            ("num_requests_waiting", "gauge", "Requests that wait or are prepared.", waiting),
            ("kv_cache_usage_perc", "gauge", "Share of key-value blocks in use, 0 to 1.", engine.kv_cache_usage),
            ("prefix_cache_queries_total", "counter", "Prompt tokens looked up.", engine.prefix_queries),
            ("prefix_cache_hits_total", "counter", "Prompt tokens found.", engine.prefix_hits),
            ("encoder_cache_queries_total", "counter", "Media looked up.", engine.encoder_queries),
            ("encoder_cache_hits_total", "counter", "Media found.", engine.encoder_hits),
            ("encoder_cache_bytes", "gauge", "Bytes of features kept.", engine.encoder_cache_bytes),
            ("prompt_tokens_total", "counter", "Prompt tokens of requests that ended.", engine.prompt_tokens),
            ("generation_tokens_total", "counter", "Tokens generated.", engine.generated_tokens),
            ("num_preemptions_total", "counter", "Answers that gave their blocks back.", engine.num_preemptions),
            ("spec_decode_num_draft_tokens_total", "counter", "Tokens guessed.", engine.drafted_tokens),
            ("spec_decode_num_accepted_tokens_total", "counter", "Guesses that held.", engine.accepted_tokens),
        ):
            lines += _plain(name, kind, meaning, [("", value)])
        finished = [(f'{{finished_reason="{reason}"}}', count) for reason, count in sorted(self._finished.items())]
        lines += _plain("request_success_total", "counter", "Answers by how they ended.", finished)
        responses = [(f'{{route="{r}",status="{s}"}}', count) for (r, s), count in sorted(self._responses.items())]
        lines += _plain("http_responses_total", "counter", "Responses by route and status.", responses)
        names = [(f'{{model_name="{_quoted(name)}"}}', 1) for name in models]
        lines += _plain("model_info", "gauge", "The models served: the base and its adapters.", names)
        for histogram in (self.first_token, self.inter_token, self.end_to_end, self.queue, self.vision, self.audio):
            lines += histogram.lines()
        return "\n".join(lines) + "\n"


def _plain(name: str, kind: str, meaning: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {meaning}"
    yield f"# TYPE {PREFIX}{name} {kind}"
    for labels, value in samples:
        yield f"{PREFIX}{name}{labels} {value}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
