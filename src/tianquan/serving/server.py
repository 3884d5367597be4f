"""The running server: it listens at once, says 503 while the model loads, and stops in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tianquan.errors import ParameterError
from tianquan.llm import LLM
from tianquan.serving.call import ABORT
from tianquan.serving.config import ServeConfig
from tianquan.serving.gate import read_keys
from tianquan.serving.routes import build_app
from tianquan.serving.service import Service

logger = logging.getLogger(__name__)

_MAX_HEAD_LEN = 32 * 1024  # bytes of a request's first line and headers
_ABORT_SECONDS = 5.0  # for the engine to notice that its last requests were aborted

Load = Callable[[], LLM]


class PatientProtocol(H11Protocol):
    """HTTP that does not wait for ever for the head of a request, and can drop a client that reads nothing."""

    head_seconds = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self.access_log = False  # it has whole paths and queries; the gate writes a line of its own
        app = self.app

        async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
            scope[ABORT] = transport.abort
            await app(scope, receive, send)

        self.app = with_abort
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; while they are no whole head, the time runs."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        in_request = self.cycle is not None and not self.cycle.response_complete
        if in_request:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def on_response_complete(self) -> None:
        """Wait for the next request; uvicorn closes a connection that stays idle."""
        super().on_response_complete()
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class RunningServer:
    """A server on a socket.

    Args:
        config: what the user set.
        load: gives the model; called on a thread of its own, while the server says 503.

    Raises:
        ParameterError: no key where one is needed, or an address that cannot be listened on.
    """

    def __init__(self, config: ServeConfig, load: Load) -> None:
        self._load = load
        self._config = config
        keys = read_keys(config)
        self.service = Service(config)
        self._socket = _listen(config.host, config.port)
        self.port: int = self._socket.getsockname()[1]
        self._failure: BaseException | None = None
        protocol_class = type("Protocol", (PatientProtocol,), {"head_seconds": config.patience.head})
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._build_app(keys),
                http=protocol_class,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=config.max_connections,
                timeout_keep_alive=config.patience.idle,  # type: ignore[arg-type]  # seconds; a float does
                timeout_graceful_shutdown=config.shutdown_seconds,
                h11_max_incomplete_event_size=_MAX_HEAD_LEN,
            )
        )

    def run(self) -> None:
        """Serve until a signal or `stop`; running requests get `shutdown_seconds`, then they are aborted.

        Raises:
            TianquanError and others: the model cannot be loaded.
        """
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        shown = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        logger.info("listening on http://%s:%d, loading the model", shown, self.port)
        thread = threading.Thread(target=self._make_ready, name="tianquan-load", daemon=True)
        thread.start()
        before = _ignore_repeated_signals()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._finish()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ask the server to stop; may be called from any thread."""
        self._server.should_exit = True

    def _build_app(self, keys: Sequence[str]) -> ASGIApp:
        return build_app(self.service, keys)

    def _make_ready(self) -> None:
        try:
            self._prepare()
        except BaseException as error:
            self._failure = error
            self.stop()

    def _prepare(self) -> None:
        """Do what takes time, on a thread of its own, while the server says 503."""
        llm = self._load()
        if self._config.preload:
            llm.load_towers()
        self.service.set_ready(llm)
        names = ", ".join(model.name for model in self.service.models)
        logger.info("ready: %s, %d tokens of context", names, self.service.max_model_len)

    def _finish(self) -> None:
        self.service.close()
        self._socket.close()
        end = time.monotonic() + _ABORT_SECONDS
        while self.service.has_work and time.monotonic() < end:
            time.sleep(0.02)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ParameterError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from error


def _ignore_repeated_signals() -> dict[int, Any]:
    """Return the old handlers. uvicorn raises a signal again after an orderly stop, which then must do nothing."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}


def serve(config: ServeConfig, load: Load) -> None:
    """Serve until stopped; see `RunningServer`."""
    RunningServer(config, load).run()
