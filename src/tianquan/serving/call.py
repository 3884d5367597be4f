"""One HTTP request and its response, whole or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from tianquan.serving.api_error import ClientGoneError

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # tells nginx to pass each event on at once
]
ABORT = "tianquan.abort"  # in the scope: drops the connection with what is not sent yet


class Call:
    """A request while it is answered.

    id: what logs and the X-Request-Id header call it.
    path: what was asked for, unquoted.
    route: for logs and metrics, a pattern without what clients put into it.
    salt: keeps what is cached for this client apart.
    notes: what the log line says beside the route and the status; never content.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, write_seconds: float) -> None:
        self.request = Request(scope, receive)
        self.path: str = scope["path"]  # not of request.url, which is put together with the Host header
        self.began = time.monotonic()
        self.id = _request_id(self.request)
        self.route = "none"
        self.salt = ""
        self.notes: dict[str, Any] = {}
        self.status = 0  # of the response once it has begun
        self._scope = scope
        self._receive = receive
        self._send = send
        self._write_seconds = write_seconds

    async def respond(self, response: Response) -> None:
        """Send a whole response.

        Raises:
            ClientGoneError: the client takes nothing any more.
        """
        await response(self._scope, self._receive, self._write)

    async def respond_json(self, body: Any, headers: dict[str, str] | None = None) -> None:
        """Send a JSON body; errors as for `respond`."""
        await self.respond(JSONResponse(body, headers=headers))

    async def forward(self, message: Message) -> None:
        """Send a part of a response that was made elsewhere; errors as for `respond`."""
        await self._write(message)

    async def _write(self, message: Message) -> None:
        """Send a message, and give up on a client that does not take it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode()), *_SAFETY]
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        is_late = False

        def give_up() -> None:
            nonlocal is_late
            is_late = True
            self._scope.get(ABORT, _nothing)()
            task.cancel()

        timer = loop.call_later(self._write_seconds, give_up)
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if is_late:
                raise ClientGoneError from None
            raise
        except OSError as error:
            raise ClientGoneError from error
        finally:
            timer.cancel()

    # Events -----------------------------------------------------------------------------------------------
    async def start_events(self) -> None:
        """Begin a stream of server-sent events."""
        await self._write({"type": "http.response.start", "status": 200, "headers": list(_STREAM_HEADERS)})

    async def send_event(self, data: Any) -> None:
        """Send an event with JSON, in one write: no character is ever cut."""
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        await self._send_piece(f"data: {text}\n\n".encode())

    async def send_ping(self) -> None:
        """Send a comment, which clients skip, so that nobody between takes the connection for dead."""
        await self._send_piece(b": ping\n\n")

    async def end_events(self) -> None:
        """Say that the stream is over."""
        await self._write({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _send_piece(self, data: bytes) -> None:
        await self._write({"type": "http.response.body", "body": data, "more_body": True})


# Of every response: a browser may not guess types, embed the page, or tell others where it was.
_SAFETY = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def _nothing() -> None:
    """Stand in where a test has no connection."""


def _request_id(request: Request) -> str:
    """Return the client's id if it is plain and short, else a new one."""
    given = request.headers.get("x-request-id", "")
    is_plain = 0 < len(given) <= 64 and given.isascii() and all(c.isalnum() or c in "-_." for c in given)
    return given if is_plain else uuid.uuid4().hex
