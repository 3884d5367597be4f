"""Errors as OpenAI clients expect them: a status, and {"error": {message, type, param, code}}.

Every text is ours or a `TianquanError`'s, which is written for users: no exception's own words, no path, no address.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from tianquan.errors import BackendError, MediaError, ModelError, ParameterError, PromptError, TianquanError
from tianquan.processing.labels import printable

_MAX_MESSAGE = 500  # characters
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """Ends a request with a status and a text for the client.

    Args:
        status: of HTTP.
        message: one line; what was found, what was expected, what to do.
        param: the field it is about, as `messages[0].content`.
        code: a short name that programs can act on.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = printable(message, _MAX_MESSAGE)
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


class ClientGoneError(Exception):
    """The client closed the connection; nobody is left to answer."""


INTERNAL = "the server failed at this request; its log tells why, under the id in X-Request-Id"


def as_api_error(error: BaseException, param: str | None = None) -> ApiError:
    """Return what a client may know of an error; of a bug, nothing but that it is one."""
    if isinstance(error, ApiError):
        error.param = error.param or param
        return error
    if isinstance(error, MediaError):
        return ApiError(400, str(error), param=param, code="invalid_media")
    if isinstance(error, PromptError | ParameterError | BackendError):
        return ApiError(400, str(error), param=param, code="invalid_value")
    if isinstance(error, ModelError | TianquanError):
        return ApiError(500, str(error), code="model_error")
    return ApiError(500, INTERNAL, code="internal_error")
