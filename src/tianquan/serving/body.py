"""Reading what clients send: never more than the cap, never longer than patience, in memory only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import TypeVar

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from tianquan.serving import protocol
from tianquan.serving.admission import Place
from tianquan.serving.api_error import ApiError, ClientGoneError
from tianquan.serving.config import Patience

MAX_FORM_FIELDS = 32
MAX_FIELD_LEN = 16 * 1024  # bytes of one form field that is not the file
MAX_JSON_MARKS = 500_000  # commas and opening brackets, those in texts too; twice 64 prompts of 4096 token ids
_PARSED_HERE = 64 * 1024  # bytes; larger JSON is parsed on a thread

Model = TypeVar("Model", bound=protocol.Body)


class BodyReader:
    """Takes bodies off connections.

    Args:
        max_bytes: of one body.
        patience: with slow clients.
    """

    def __init__(self, max_bytes: int, patience: Patience) -> None:
        self._max_bytes = max_bytes
        self._patience = patience

    async def read(self, request: Request, place: Place) -> bytes:
        """Return a body as it is.

        Raises:
            ApiError, ClientGoneError: as `read_json`, about its size and speed.
        """
        return b"".join([piece async for piece in self._pieces(request, place)])

    async def read_json(self, request: Request, model: type[Model], place: Place) -> Model:
        """Return the checked body of a JSON request.

        Raises:
            ApiError: another content type, too large, too slow, too many, not JSON, or not of the model's form.
            ClientGoneError: the connection ended before the body did.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a form's type would let any web page post here
            raise ApiError(400, "the body must be JSON: send Content-Type: application/json", code="invalid_type")
        data = await self.read(request, place)
        if len(data) > _PARSED_HERE:
            return await asyncio.to_thread(_parse, data, model)
        return _parse(data, model)

    async def read_form(self, request: Request, place: Place) -> tuple[dict[str, str], bytes]:
        """Return the fields of a multipart form, and the content of its one file, `file`.

        Raises:
            ApiError, ClientGoneError: as `read_json`; also a field given twice, or no file.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise ApiError(400, "the body must be a form: send multipart/form-data with a file", code="invalid_type")
        parser = _MemoryParser(
            request.headers,
            self._pieces(request, place),
            max_files=1,
            max_fields=MAX_FORM_FIELDS,
            max_part_size=MAX_FIELD_LEN,
        )
        try:
            form = await parser.parse()
        except (ApiError, ClientGoneError, asyncio.CancelledError):
            raise
        except MultiPartException as error:
            raise ApiError(
                400, "the form is damaged or has too many or too large fields", code="invalid_form"
            ) from error
        except Exception as error:  # the parser's own errors are of several kinds
            raise ApiError(400, "the form is damaged; send multipart/form-data", code="invalid_form") from error
        return await _split(form)

    async def _pieces(self, request: Request, place: Place) -> AsyncGenerator[bytes, None]:
        """Yield a body as it comes, as long as it is neither too large nor too slow."""
        stated = request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > self._max_bytes:
            raise self._too_large()
        num_bytes, began = 0, time.monotonic()
        while True:
            allowed = self._patience.body + num_bytes / self._patience.body_rate
            try:
                message = await asyncio.wait_for(request.receive(), began + allowed - time.monotonic())
            except (asyncio.TimeoutError, TimeoutError) as error:
                raise ApiError(408, "the body came too slowly", code="slow_body") from error
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece: bytes = message.get("body", b"")
            num_bytes += len(piece)
            if num_bytes > self._max_bytes:
                raise self._too_large()
            place.hold(len(piece))
            yield piece
            if not message.get("more_body", False):
                return

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than the {self._max_bytes} bytes taken here", code="too_large")


def check_marks(data: bytes) -> None:
    """Refuse JSON of too many values before it is parsed: `[],` takes 3 bytes, and parsed 250.

    Raises:
        ApiError: 400.
    """
    num_marks = sum(data.count(mark) for mark in b",[{")
    if num_marks > MAX_JSON_MARKS:
        raise ApiError(
            400,
            f"the body has {num_marks} commas and opening brackets; at most {MAX_JSON_MARKS} are taken",
            code="invalid_value",
        )


def _parse(data: bytes, model: type[Model]) -> Model:
    check_marks(data)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise protocol.invalid_body(error) from None


class _MemoryParser(MultiPartParser):
    """Starlette's parser, which would put files over 1 MB on disk."""

    spool_max_size = 2**62


async def _split(form: FormData) -> tuple[dict[str, str], bytes]:
    fields: dict[str, str] = {}
    content: bytes | None = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "file":
                await form.close()
                raise ApiError(400, "the file's field must be called file", param="file", code="invalid_value")
            content = await value.read()  # its name is not looked at
        elif name in fields:
            raise ApiError(400, "a field is given twice", code="invalid_value")
        else:
            fields[name] = value
    await form.close()
    if content is None:
        raise ApiError(400, "file is missing: send the recording as a file part", param="file", code="invalid_value")
    return fields, content
