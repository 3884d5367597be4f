"""The routes: which path and method is answered by what, and the small ones themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from tianquan.serving import protocol
from tianquan.serving.api_error import ApiError
from tianquan.serving.call import Call
from tianquan.serving.completion_routes import chat_completions, completions, open_inbox
from tianquan.serving.conversation import text_len
from tianquan.serving.gate import Gate
from tianquan.serving.metrics import CONTENT_TYPE
from tianquan.serving.openapi import openapi_document
from tianquan.serving.page import Page
from tianquan.serving.service import ServedModel, Service
from tianquan.serving.transcription_route import transcriptions

Route = Callable[[Service, Call], Awaitable[None]]


async def models(service: Service, call: Call) -> None:
    """List the models."""
    await call.respond_json({"object": "list", "data": [_model(service, model) for model in service.models]})


async def one_model(service: Service, call: Call) -> None:
    """Describe one model."""
    model = service.find_model(call.path.removeprefix("/v1/models/"))
    await call.respond_json(_model(service, model))


def _model(service: Service, model: ServedModel) -> dict[str, Any]:
    parent = (
        {} if model.name == service.model_name else {"parent": service.model_name}
    )  # of an adapter, as vLLM says it
    return {
        "id": model.name,
        "object": "model",
        "created": service.created,
        "owned_by": "tianquan",
        "max_model_len": service.max_model_len,
        "input_modalities": ["text", "image", "audio", "video"],
        "output_modalities": ["text"],
        **parent,
    }


async def tokenize(service: Service, call: Call) -> None:
    """Return the token ids of a text, or of a conversation with its template and media."""
    with service.admission.enter() as place:
        body = await service.reader.read_json(call.request, protocol.TokenizeRequest, place)
        service.find_model(body.model)
        given = [value for value in (body.prompt, body.content, body.messages) if value is not None]
        if len(given) != 1:
            raise ApiError(400, "give exactly one of prompt, content and messages", code="invalid_value")
        service.check_text_len(len(given[0]) if isinstance(given[0], str) else text_len(given[0]))
        if isinstance(given[0], str):
            token_ids = await service.on_thread(service.llm.tokenizer.encode_text, given[0])
        else:
            async with open_inbox(service, call) as inbox:
                messages = await service.resolve(inbox, place, given[0])
                prepared = await service.prepare(inbox, lambda: service.chat_prompt(messages))
            token_ids = prepared.prompt.token_ids.tolist()
        await call.respond_json({"count": len(token_ids), "max_model_len": service.max_model_len, "tokens": token_ids})


async def health(service: Service, call: Call) -> None:
    """Say whether the server answers."""
    if not service.is_ready:
        raise ApiError(503, "the model is being loaded", code="loading", headers={"Retry-After": "5"})
    await call.respond_json({"status": "ok"})


async def metrics(service: Service, call: Call) -> None:
    """Return Prometheus metrics."""
    statistics = service.statistics()
    num_preparing = max(0, service.admission.num_taken - statistics.num_running - statistics.num_waiting)
    text = service.metrics.text(statistics, num_preparing, [model.name for model in service.models])
    await call.respond(PlainTextResponse(text, headers={"Content-Type": CONTENT_TYPE}))


async def openapi(service: Service, call: Call) -> None:
    """Return the OpenAPI document."""
    await call.respond_json(openapi_document())


ROUTES: dict[str, dict[str, Route]] = {
    "/v1/chat/completions": {"POST": chat_completions},
    "/v1/completions": {"POST": completions},
    "/v1/audio/transcriptions": {"POST": transcriptions},
    "/v1/models": {"GET": models},
    "/tokenize": {"POST": tokenize},
    "/health": {"GET": health},
    "/metrics": {"GET": metrics},
    "/openapi.json": {"GET": openapi},
}
_NEED_NO_MODEL = ("/health", "/openapi.json")


class Routes:
    """Finds the route of a call. Paths are compared whole: there is nothing to traverse."""

    def __init__(self, service: Service, page: Page) -> None:
        self._service = service
        self._page = page

    def is_open(self, path: str) -> bool:
        """Return whether a path needs no key."""
        return path == "/health" or path in self._page

    async def __call__(self, call: Call) -> None:
        """Answer a call."""
        path, method = call.path, call.request.method
        method = "GET" if method == "HEAD" else method
        routes = ROUTES.get(path)
        call.route = path if routes is not None else "none"
        if routes is None and path.startswith("/v1/models/"):
            routes, call.route = {"GET": one_model}, "/v1/models/{model}"
        if routes is None and path in self._page:
            call.route = "page"
            if method == "GET":
                await call.respond(self._page.response(path))
                return
            routes = {"GET": health}
        if routes is None:
            raise ApiError(404, "there is nothing at this path; see /openapi.json", code="not_found")
        route = routes.get(method)
        if route is None:
            raise ApiError(405, f"send {' or '.join(routes)}", code="method", headers={"Allow": ", ".join(routes)})
        if path not in _NEED_NO_MODEL:
            _ = self._service.llm  # 503 before anything is read
        await route(self._service, call)


def build_app(service: Service, keys: Sequence[str] = (), page: Page | None = None) -> ASGIApp:
    """Return the server as an ASGI application."""
    routes = Routes(service, page or Page())
    return Gate(service.config, keys, service.metrics, routes.is_open, routes)
