"""A replica: the model and the server's routes in an actor of Ray Serve, called by the front.

    front --(conversation, request)--> router --> replica: routes --> parts of the response, as they come

A conversation goes to the same replica while that one lives and has room, because its keys and values are there. Which
one is decided by highest random weight: each replica's number is a hash of the conversation and the replica, the
largest wins. Nothing is remembered, and a replica that comes or goes moves its own conversations only.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from tianquan.errors import ModelError
from tianquan.llm import LLM
from tianquan.serving.call import Call
from tianquan.serving.config import ServeConfig
from tianquan.serving.gate import Gate
from tianquan.serving.page import Page
from tianquan.serving.routes import Routes
from tianquan.serving.service import Service

REPLICA_HEADER = b"x-tianquan-replica"  # from the replica to the front, which logs it and keeps it

Message = MutableMapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ForwardedRequest:
    """What the front passes on of a request it has checked.

    method, path: of the request.
    content_type: of its body.
    id: of the request, for both logs.
    salt: see `EngineRequest`; follows from the client's key.
    body: all of it.
    """

    method: str
    path: str
    content_type: str
    id: str
    salt: str
    body: bytes

    def scope(self) -> dict[str, Any]:
        """Return it as an ASGI scope."""
        headers = [(b"content-type", self.content_type.encode("latin-1")), (b"x-request-id", self.id.encode())]
        return {
            "type": "http",
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "headers": headers,
            "server": ("replica", None),
        }


class Replica:
    """The model behind the server's routes. Ray makes one in each actor.

    Args:
        config: of the server; keys and hosts are the front's to check.
        load: loads the model.

    Raises:
        TianquanError: the model cannot be loaded.
    """

    def __init__(self, config: ServeConfig, load: Callable[[ServeConfig], LLM]) -> None:
        self._service = Service(config)
        llm = load(config)
        if config.preload:
            llm.load_towers()
        self._service.set_ready(llm)
        self._name = f"{socket.gethostname()}:{os.getpid()}".encode()

    def check_health(self) -> None:
        """Raise when the model is gone; Ray asks now and then, and replaces a replica that raises or is silent."""
        if not self._service.is_ready:
            raise ModelError("the model is not loaded")

    async def answer(self, conversation: str, request: ForwardedRequest) -> AsyncGenerator[Message, None]:
        """Yield the parts of a response. Closing it early ends the answer.

        Args:
            conversation: for the router, which reads it from the first argument.
            request: what was asked for.
        """
        parts: asyncio.Queue[Message | None] = asyncio.Queue()

        async def send(part: Message) -> None:
            parts.put_nowait(part)

        async def run() -> None:
            try:
                gate = _InnerGate(self._service, request.salt)
                await gate(request.scope(), _receive_once(request.body), send)
            finally:
                parts.put_nowait(None)

        task = asyncio.create_task(run())
        try:
            while (part := await parts.get()) is not None:
                if part["type"] == "http.response.start":
                    part = {**part, "headers": [*part["headers"], (REPLICA_HEADER, self._name)]}
                yield part
            await task  # an error that no response tells of
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class _InnerGate(Gate):
    """What failures end in, behind a front that has checked the request."""

    def __init__(self, service: Service, salt: str) -> None:
        routes = Routes(service, Page())
        super().__init__(service.config, (), service.metrics, routes.is_open, routes)
        self._salt = salt

    def _check(self, call: Call) -> None:
        call.salt = self._salt


def _receive_once(body: bytes) -> Callable[[], Awaitable[Message]]:
    left: list[bytes] = [body]

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()  # the front closes the generator when the client is gone
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return receive


class ConversationRouter(RequestRouter):
    """Sends a conversation where it was before; when there is no room, to the next in its own order of replicas."""

    # On a busy machine a replica may take seconds to say that it has room; computing a conversation with a picture anew
    # takes longer. One that is dead is known to be so at once and is not waited for.
    queue_len_response_deadline_s = 10.0
    max_queue_len_response_deadline_s = 30.0

    async def choose_replicas(
        self, candidate_replicas: Sequence[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they are tried; see ray.serve's `RequestRouter`."""
        if pending_request is None or not pending_request.args:
            return [list(candidate_replicas)]
        pending_request.routing_context.should_backoff = True  # when none has room: else Ray asks without a pause
        conversation = str(pending_request.args[0])
        names = {replica: replica.replica_id.to_full_id_str() for replica in candidate_replicas}
        return [[replica] for replica in sorted(names, key=lambda it: _weight(conversation, names[it]), reverse=True)]


def _weight(conversation: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{conversation} {replica}".encode(), digest_size=8).digest()
