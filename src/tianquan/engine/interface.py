"""What goes into the engine and comes out of it: requests, outputs and statistics, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tianquan.engine.parameter_checks import check_bytes
from tianquan.engine.scheduler import SchedulerLimits
from tianquan.request import Prompt, SamplingParams, Timings, TokenLogprob, Usage

EndReason = Literal["stop", "length", "abort", "error"]
Mask = npt.NDArray[np.bool_]


class Constraint(Protocol):
    """Says which tokens may come next. One object belongs to one request."""

    def allowed(self) -> Mask:
        """Return which token ids (vocab,) may come next."""
        ...

    def accept(self, token_id: int) -> None:
        """Record the chosen token."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One answer to be made.

    prompt: token ids, media and spans.
    sampling: how tokens are chosen; `stop`, `n` and `output_format` are the caller's to act on, by `is_stopped`,
        several requests, and `constraint`.
    stop_token_ids: ids that end the answer, the last of its tokens then.
    adapter: name of the adapter the model runs with; requests of different adapters share nothing.
    salt: requests of different salts share nothing: neither what a prompt said nor which picture it had can be
        found out by timing another.
    is_stopped: called with each new token id in the stepping thread; True ends the answer. An exception it
        raises ends this request alone.
    constraint: which tokens may come next; None for all.
    """

    prompt: Prompt
    sampling: SamplingParams
    stop_token_ids: frozenset[int] = frozenset()
    adapter: str | None = None
    salt: str = ""
    is_stopped: Callable[[int], bool] | None = None
    constraint: Constraint | None = None
    preprocess_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RequestEnd:
    """How a request ended. `error` is set exactly when the reason is `error`."""

    reason: EndReason
    usage: Usage
    timings: Timings
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """What one step gave one request. The last output of a request has its `end`, and may have no token."""

    request_id: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token, when asked for
    end: RequestEnd | None = None


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How much memory and what order of work.

    kv_cache_bytes: bytes of keys and values; None for 1 GiB, but at least one context window and at most as
        many as run at once. The memory is touched as it is used.
    encoder_cache_bytes: bytes of picture and sound features kept; 0 turns the cache off.
    speculation: guess tokens that repeat the prompt or the answer and verify them together; changes no token.
    limits: of a step, see `SchedulerLimits`.
    """

    kv_cache_bytes: int | None = None
    encoder_cache_bytes: int = 256 * 2**20
    speculation: bool = True
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)

    def __post_init__(self) -> None:
        if self.kv_cache_bytes is not None:
            check_bytes("kv_cache_bytes", self.kv_cache_bytes)
        check_bytes("encoder_cache_bytes", self.encoder_cache_bytes)


@dataclass(frozen=True, kw_only=True)
class EngineStatistics:
    """A snapshot. Counters count since the start; sizes are of now."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_blocks_in_use: int  # by running requests
    num_blocks_cached: int  # known beginnings nobody uses at the moment
    kv_cache_bytes: int
    prefix_queries: int  # prompt tokens of requests whose prompt was computed
    prefix_hits: int  # of those, taken from the cache
    prefix_evictions: int  # blocks
    encoder_queries: int
    encoder_hits: int
    encoder_cache_bytes: int
    num_preemptions: int
    num_steps: int
    prompt_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    vision_ms: float
    audio_ms: float
    ended: dict[str, int]  # requests by reason

    @property
    def kv_cache_usage(self) -> float:
        """Share of blocks that running requests hold."""
        return self.num_blocks_in_use / self.num_blocks

    @classmethod
    def of_all(cls, each: Sequence[EngineStatistics]) -> EngineStatistics:
        """Return the sums over one engine or more."""
        sums: dict[str, Any] = {
            name: sum(getattr(one, name) for one in each) for name in vars(each[0]) if name != "ended"
        }
        return cls(**sums, ended=dict(sum((Counter(one.ended) for one in each), Counter())))

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form for JSON."""
        return {**vars(self), "ended": dict(self.ended), "kv_cache_usage": self.kv_cache_usage}
