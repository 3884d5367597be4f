"""What every request passes first: an id, the host check, the key; and what every failure ends in.

The key guards everything but /health and the page's own files, which are the same for everybody and hold no data:
the page must open to ask for the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tianquan.errors import ParameterError
from tianquan.serving.api_error import ApiError, ClientGoneError, as_api_error
from tianquan.serving.call import Call
from tianquan.serving.config import ServeConfig
from tianquan.serving.metrics import Metrics

logger = logging.getLogger(__name__)

KEY_VARIABLE = "TIANQUAN_API_KEY"
_MIN_KEY_LEN = 8
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_CLIENT_CLOSED = 499  # nginx's number for it, in logs only

Handler = Callable[[Call], Awaitable[None]]


def read_keys(config: ServeConfig) -> tuple[str, ...]:
    """Return the keys of the key file, one a line, and of the environment.

    Raises:
        ParameterError: the file cannot be read or holds no key; a key is too short or not plain; or another
            address is to be served without one.
    """
    keys: list[str] = []
    if config.api_key_file is not None:
        lines = _key_lines(config.api_key_file)
        keys += [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ParameterError(f"{config.api_key_file}: holds no key; write one on a line")
    if os.environ.get(KEY_VARIABLE):
        keys.append(os.environ[KEY_VARIABLE])
    if not all(len(key) >= _MIN_KEY_LEN and key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ParameterError(f"a key must be at least {_MIN_KEY_LEN} printable ASCII characters without spaces")
    if not keys and not config.is_local and not config.insecure:
        raise ParameterError(
            f"{config.host} can be reached by others: give --api-key-file, or --insecure to serve everybody"
        )
    return tuple(dict.fromkeys(keys))


def _key_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ParameterError(f"{path}: the key file cannot be read") from error


class KeyCheck:
    """Compares keys in a time that tells nothing about them."""

    def __init__(self, keys: Collection[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def is_on(self) -> bool:
        """True when there are keys."""
        return bool(self._digests)

    def salt(self, request: Request) -> str:
        """Return what keeps the caches of the request's key apart.

        Raises:
            ApiError: 401, no key or a wrong one.
        """
        if not self._digests:
            return ""
        given = request.headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = hashlib.sha256(key.strip().encode("utf-8", errors="replace")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them, always
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "a valid key is needed: send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return f"key-{matches.index(True)}"


class Gate:
    """The ASGI application: checks, then hands the call on, and turns what it raises into a response.

    Args:
        config: of the server.
        keys: the valid keys; none lets everybody in.
        metrics: hears of every response.
        is_open: whether a path needs no key.
        handler: answers what passed.
    """

    def __init__(
        self,
        config: ServeConfig,
        keys: Collection[str],
        metrics: Metrics,
        is_open: Callable[[str], bool],
        handler: Handler,
    ) -> None:
        self._key_check = KeyCheck(keys)
        self._metrics = metrics
        self._is_open = is_open
        self._handler = handler
        self._write_seconds = config.patience.write
        checks_host = config.is_local and not self._key_check.is_on
        hosts = {*_LOCAL_NAMES, config.host.lower(), *(host.lower() for host in config.allowed_host)}
        self._hosts = hosts if checks_host else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        call = Call(scope, receive, send, self._write_seconds)
        status = 0
        try:
            await self._answer(call)
            status = call.status
        except ClientGoneError:
            status = _CLIENT_CLOSED
        except asyncio.CancelledError:  # the server stops, and waited long enough
            with contextlib.suppress(ClientGoneError):
                await self._fail(call, ApiError(503, "the server is stopping", code="stopping"))
            status = call.status or _CLIENT_CLOSED
        finally:
            self._record(call, status or 500)

    async def _answer(self, call: Call) -> None:
        try:
            self._check(call)
            await self._handler(call)
        except ClientGoneError:
            raise
        except Exception as error:
            known = as_api_error(error)
            if known.status == 500:
                logger.error("request %s failed", call.id, exc_info=error)
            await self._fail(call, known)

    async def _fail(self, call: Call, error: ApiError) -> None:
        call.notes["error"] = error.code or error.status
        if call.status:  # a stream that has begun cannot change its status
            await call.send_event(error.body())
            await call.end_events()
        else:
            await call.respond(error.response())

    def _check(self, call: Call) -> None:
        request = call.request
        self._check_origin(request)
        if not self._is_open(call.path):
            call.salt = self._key_check.salt(request)

    def _check_origin(self, request: Request) -> None:
        """Keep other web pages out: those that reach this machine by a name of their own, and those that post forms."""
        host = request.headers.get("host", "")
        if self._hosts is not None and _host_name(host) not in self._hosts:
            raise ApiError(403, "this host name is not served here; see --allowed-host", code="invalid_host")
        if request.method not in ("GET", "HEAD") and not _is_own_page(request, host):
            raise ApiError(403, "requests of other web pages are not taken", code="cross_origin")

    def _record(self, call: Call, status: int) -> None:
        self._metrics.record_response(call.route, status)
        line = {
            "event": "request",
            "id": call.id,
            "method": call.request.method[:10],
            "route": call.route,
            "status": status,
            "ms": round(1000 * (time.monotonic() - call.began), 1),
            **call.notes,
        }
        logger.info(json.dumps(line))


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_own_page(request: Request, host: str) -> bool:
    """Return whether a request comes from no web page, or from our own."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:  # browsers set it, pages cannot
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or origin.lower().partition("://")[2] == host.lower()
