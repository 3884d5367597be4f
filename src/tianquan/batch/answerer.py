"""One row to one line of output, through the server's routes called in this process."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from tianquan.batch.output_file import line_start, row_id
from tianquan.batch.rows import URLS, Row, RowError, RowRequest, parse_row
from tianquan.llm import LLM
from tianquan.serving.api_error import as_api_error
from tianquan.serving.call import Call
from tianquan.serving.config import ServeConfig
from tianquan.serving.media_fetch import MediaFetcher
from tianquan.serving.routes import ROUTES
from tianquan.serving.service import Service

logger = logging.getLogger(__name__)

_TRIES = 2  # of a row whose answer failed through no fault of its own
_QUEUE_FULL = 429
_PAUSE_SECONDS = 0.2
_MAX_QUEUE = 100_000  # answers; a row may ask for 64 prompts times 32
_MORE_BYTES = 4096  # of a row that is written again
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_WRITE_SECONDS = 3600.0  # nobody is slow here


@dataclass(frozen=True, kw_only=True)
class AnsweredRow:
    """What a row became.

    number: of the row.
    end: where in the input the row's line ends.
    line: of the output, with its line feed.
    is_error: the row has an error in place of an answer.
    prompt_tokens, completion_tokens: 0 for an error.
    """

    number: int
    end: int
    line: bytes
    is_error: bool
    prompt_tokens: int = 0
    completion_tokens: int = 0


class PathFetcher(MediaFetcher):
    """As the server's, and a medium may also be named by a plain path below the media root."""

    async def __call__(self, url: str) -> bytes:
        """Return the bytes of a URL or a path; errors as for `MediaFetcher`."""
        if not _SCHEME.match(url):
            url = "file://" + quote(url if url.startswith("/") else f"/{url}")
        return await super().__call__(url)


class RowAnswerer:
    """Answers rows on a running event loop, as many side by side as are asked for.

    Args:
        llm: the model.
        config: the limits that rows are held against, as the server's; rows wait where clients would be refused.
        job: see `row_id`.
        seed: of rows that have none: such a row's seed follows from this number and its place in the file, so that the
            job can be repeated.
    """

    def __init__(self, llm: LLM, config: ServeConfig, job: bytes, seed: int) -> None:
        self._job = job
        self._seed = seed
        # Rows are held against their cap where they are read; written again, they may be longer.
        most = 2 * config.max_body_bytes + _MORE_BYTES
        self._service = Service(replace(config, max_queue=_MAX_QUEUE, max_body_bytes=most))
        self._service.fetcher = PathFetcher(
            domains=frozenset(config.allow_media_domain), root=config.media_root, max_bytes=config.max_media_bytes
        )
        self._service.set_ready(llm)

    async def answer(self, row: Row, is_repeated: bool) -> AnsweredRow:
        """Return what a row became. No row raises.

        Args:
            row: of the input.
            is_repeated: an earlier row has its custom_id.
        """
        id = row_id(self._job, row)
        try:
            request = parse_row(row)
            if is_repeated:
                message = f"line {row.line}: an earlier row has this custom_id; each must be a row's own"
                raise RowError("duplicate_custom_id", message, request.custom_id)
        except RowError as error:
            return _error_row(row, id, error.custom_id, error.code, str(error), None)
        tries_left = _TRIES
        while tries_left:
            status, body = await self._respond(id, row, request)
            if status == _QUEUE_FULL:  # rows that ask for many answers, or very large ones, are many just now
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            tries_left = tries_left - 1 if status >= 500 else 0
        response = {"status_code": status, "request_id": id, "body": body}
        if status != 200:
            found = body["error"]
            return _error_row(row, id, request.custom_id, found["code"], found["message"], response)
        usage = body["usage"]
        return AnsweredRow(
            number=row.number,
            end=row.end,
            line=_line(id, request.custom_id, response, None),
            is_error=False,
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )

    async def _respond(self, id: str, row: Row, request: RowRequest) -> tuple[int, dict[str, Any]]:
        """Return the status and body the route answers with."""
        body = dict(request.body)
        if body.get("seed") is None:
            body["seed"] = (self._seed + row.number) % 2**63
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        connection = _Connection(text.encode("utf-8", errors="surrogatepass"))
        call = Call(_scope(request.url, id), connection.receive, connection.send, _WRITE_SECONDS)
        try:
            await ROUTES[request.url]["POST"](self._service, call)
        except Exception as error:
            known = as_api_error(error)
            if known.status == 500:
                logger.error("line %d failed", row.line, exc_info=error)
            return known.status, known.body()
        return call.status, json.loads(bytes(connection.sent))

    def close(self) -> None:
        """Stop the threads."""
        self._service.close()


class _Connection:
    """The two ends of an HTTP request without a network: a body that is there at once, a response that is kept."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.sent = bytearray()

    async def receive(self) -> dict[str, Any]:
        if self._body is None:
            await asyncio.Event().wait()  # this client never goes away
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            self.sent += message.get("body", b"")


def _scope(url: str, id: str) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json"), (b"x-request-id", id.encode())]
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": url,
        "raw_path": url.encode(),
        "query_string": b"",
        "headers": headers,
        "server": ("batch", None),
    }


def _error_row(
    row: Row, id: str, custom_id: str | None, code: str, message: str, response: dict[str, Any] | None
) -> AnsweredRow:
    line = _line(id, custom_id, response, {"code": code, "message": message})
    return AnsweredRow(number=row.number, end=row.end, line=line, is_error=True)


def _line(id: str, custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    form = {"id": id, "custom_id": custom_id, "response": response, "error": error}
    line = json.dumps(form, ensure_ascii=False).encode() + b"\n"
    assert line.startswith(line_start(id))
    return line


assert set(URLS) <= set(ROUTES)
