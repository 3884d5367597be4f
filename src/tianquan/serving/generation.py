"""Answers on their way from the engine's thread to an asyncio task.

    engine thread --Mailroom--> Inbox (one per HTTP request) --await--> pieces of text

Waking the event loop costs the engine's thread a system call and, with it, the interpreter: the mailroom wakes it once
for what came meanwhile, and a task that is late takes what waits for it as one piece. The inbox also takes word
that the client is gone and, while nothing else comes, that it is time for a sign of life.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tianquan.engine.interface import EngineRequest, RequestEnd, RequestOutput
from tianquan.engine_driver import EngineDriver
from tianquan.processing.tokenizer import Tokenizer
from tianquan.request import FinishReason, Prompt, TokenLogprob, Usage
from tianquan.serving.api_error import ClientGoneError
from tianquan.serving.metrics import Metrics
from tianquan.text_stream import TextStream, stop_watch

Result = TypeVar("Result")

_PING = object()
_GONE = object()


@dataclass(frozen=True)
class Piece:
    """What one step gave one of the answers. The last piece of an answer has its finish reason."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None

    def joined(self, later: Piece) -> Piece:
        """Return this piece and a later one of the same answer as one."""
        return Piece(self.index, self.text + later.text, self.logprobs + later.logprobs, later.finish_reason)


class Ping:
    """Comes in place of a piece after a while without one."""


PING = Ping()


class Mailroom:
    """Carries items from other threads to the inboxes of an event loop, which must be running."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[Inbox, Any]] = deque()
        self._is_due = False

    def put(self, inbox: Inbox, item: Any) -> None:
        """Send an item, from any thread. After the loop's end there is nobody to tell."""
        self._items.append((inbox, item))
        if not self._is_due:
            self._is_due = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise

    def _deliver(self) -> None:
        self._is_due = False  # first: what is put from here on wakes the loop again
        while self._items:
            inbox, item = self._items.popleft()
            inbox.put(item)


class Inbox:
    """What happens to one HTTP request, in order. Used on the event loop only."""

    def __init__(self, ping_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._has_items = asyncio.Event()
        self._ping_seconds = ping_seconds
        self._quiet_since = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()

    @property
    def is_gone(self) -> bool:
        """Whether the client closed the connection; may be asked from any thread."""
        return self._gone.is_set()

    async def unless_gone(self, work: Awaitable[Result]) -> Result:
        """Return what work gives, which is cancelled when the client goes first.

        Raises:
            ClientGoneError: it did.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGoneError
            return task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    def put(self, item: Any) -> None:
        """Add an item."""
        self._items.append(item)
        self._has_items.set()

    async def take(self) -> Any:
        """Return the next item; `PING` after a while without one.

        Raises:
            ClientGoneError: the client closed the connection.
        """
        while not self._items:
            self._has_items.clear()
            await self._has_items.wait()
        item = self._items.popleft()
        self._quiet_since = time.monotonic()
        if item is _GONE:
            raise ClientGoneError
        return PING if item is _PING else item

    def next(self) -> Any:
        """Return the item that is there already and comes next, without taking it; None for none."""
        return self._items[0] if self._items else None

    async def watch(self, receive: Callable[[], Awaitable[Any]]) -> None:
        """Wait until the client is gone. The body must have been read."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        self.put(_GONE)

    def start_pings(self) -> None:
        """Begin to put pings in when it is quiet."""
        left = self._quiet_since + self._ping_seconds - time.monotonic()
        if left <= 0:
            self.put(_PING)
            self._quiet_since = time.monotonic()
            left = self._ping_seconds
        self._timer = self._loop.call_later(max(left, 0.01), self.start_pings)

    def close(self) -> None:
        """Stop the pings."""
        if self._timer is not None:
            self._timer.cancel()


@dataclass
class _Choice:
    """One of the answers while it is made."""

    stream: TextStream
    stop_token_ids: frozenset[int]
    prompt: Prompt
    request_id: int = -1
    end: RequestEnd | None = None
    held: list[TokenLogprob] = field(default_factory=list)  # of tokens whose text is not certain yet
    last_token: float = 0.0


@dataclass(frozen=True)
class _Arrival:
    """Something the engine gave, and when."""

    index: int
    output: RequestOutput | Exception
    when: float


class Generation:
    """The answers to some engine requests of one HTTP request. Closing it aborts what has not ended.

    Args:
        driver: the engine's.
        tokenizer: makes text of ids.
        requests: one for each answer.
        inbox: of the HTTP request; one generation at a time reads from it.
        mailroom: of the event loop.
        metrics: hears of tokens and ends.
        began: when the HTTP request came, by `time.monotonic`.
        on_end: called on the event loop when the engine is done with all of it.

    Raises:
        ParameterError, PromptError: see `Engine.add`; nothing is left running then.
    """

    def __init__(
        self,
        driver: EngineDriver,
        tokenizer: Tokenizer,
        requests: Sequence[EngineRequest],
        inbox: Inbox,
        mailroom: Mailroom,
        metrics: Metrics,
        *,
        began: float,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._driver = driver
        self._inbox = inbox
        self._mailroom = mailroom
        self._metrics = metrics
        self._began = began
        self._on_end = on_end
        self._choices = [
            _Choice(TextStream(tokenizer, request.sampling.stop), request.stop_token_ids, request.prompt)
            for request in requests
        ]
        self._num_open = 0  # submitted, and not ended in the engine
        try:
            for index, request in enumerate(requests):
                self._submit(index, request, tokenizer)
        except BaseException:
            self.close()
            raise

    def _submit(self, index: int, request: EngineRequest, tokenizer: Tokenizer) -> None:
        if request.sampling.stop:
            request = replace(request, is_stopped=stop_watch(tokenizer, request.sampling.stop))

        def arrive(output: RequestOutput | Exception) -> None:
            self._mailroom.put(self._inbox, _Arrival(index, output, time.monotonic()))

        self._choices[index].request_id = self._driver.submit(request, arrive, arrive)
        self._num_open += 1

    async def pieces(self) -> AsyncIterator[Piece | Ping]:
        """Yield what comes until every answer has ended.

        Raises:
            ClientGoneError: nobody listens any more.
            TianquanError and others: an answer ended by an error; the others are aborted.
        """
        try:
            while self._num_open:
                item = await self._inbox.take()
                if isinstance(item, Ping):
                    yield item
                elif isinstance(item, _Arrival):
                    piece = self._receive(item)
                    while piece.finish_reason is None and self._follows(item):
                        piece = piece.joined(self._receive(await self._inbox.take()))
                    yield piece
        finally:
            self.close()

    def _follows(self, arrival: _Arrival) -> bool:
        """Return whether more of the same answer is there already, and no error."""
        item = self._inbox.next()
        if not isinstance(item, _Arrival) or item.index != arrival.index or isinstance(item.output, Exception):
            return False
        return item.output.end is None or item.output.end.error is None

    def _receive(self, arrival: _Arrival) -> Piece:
        choice, output = self._choices[arrival.index], arrival.output
        if isinstance(output, Exception):
            choice.request_id = -1
            self._one_ended()
            raise output
        self._observe(choice, output, arrival.when)
        text, certain = "", list[TokenLogprob]()
        for n, token_id in enumerate(output.token_ids):
            if token_id in choice.stop_token_ids or choice.stream.stopped:
                continue
            added = choice.stream.add(token_id)
            choice.held += output.logprobs[n : n + 1]
            if added:
                text += added
                certain += choice.held
                choice.held = []
        if output.end is None:
            return Piece(arrival.index, text, tuple(certain))
        choice.end = output.end
        choice.request_id = -1
        self._one_ended()
        if output.end.error is not None:
            raise output.end.error
        rest = choice.stream.finish()
        if rest or not choice.stream.stopped:  # else these tokens are the stop string's
            certain += choice.held
        reason: FinishReason = "stop" if choice.stream.stopped else _finish_reason(output.end)
        return Piece(arrival.index, text + rest, tuple(certain), reason)

    def _observe(self, choice: _Choice, output: RequestOutput, when: float) -> None:
        num_tokens = len(output.token_ids)
        if num_tokens:
            if choice.last_token:
                self._metrics.inter_token.observe((when - choice.last_token) / num_tokens, num_tokens)
            else:
                self._metrics.first_token.observe(when - self._began)
            choice.last_token = when
        if output.end is not None:
            self._metrics.record_end(output.end, when - self._began)

    def _one_ended(self) -> None:
        self._num_open -= 1
        if self._num_open == 0:
            self._on_end()

    def close(self) -> None:
        """Abort the answers that have not ended."""
        for choice in self._choices:
            if choice.request_id >= 0:
                self._driver.abort(choice.request_id)
                choice.request_id = -1
                self._metrics.aborted()
                self._one_ended()

    @property
    def ends(self) -> list[RequestEnd]:
        """How the answers ended; complete after `pieces`."""
        return [choice.end for choice in self._choices if choice.end is not None]

    def end_of(self, index: int) -> RequestEnd:
        """Return how one answer ended, after its last piece."""
        end = self._choices[index].end
        assert end is not None, "an answer has its end when its last piece is out"
        return end

    @property
    def usage(self) -> Usage:
        """Token counts: each prompt once, all answers."""
        first = {id(choice.prompt): choice.end.usage for choice in reversed(self._choices) if choice.end is not None}
        prompts = first.values()
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
            completion_tokens=sum(end.usage.completion_tokens for end in self.ends),
            image_tokens=sum(usage.image_tokens for usage in prompts),
            audio_tokens=sum(usage.audio_tokens for usage in prompts),
            cached_tokens=sum(usage.cached_tokens for usage in prompts),
            video_tokens=sum(usage.video_tokens for usage in prompts),
            video_frames=sum(usage.video_frames for usage in prompts),
        )


def _finish_reason(end: RequestEnd) -> FinishReason:
    assert end.reason != "error"
    return end.reason
