"""The OpenAPI document of the server, made from the request models."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

import tianquan
from tianquan.serving import protocol

_BODIES: tuple[type[protocol.Body], ...] = (
    protocol.ChatRequest,
    protocol.CompletionRequest,
    protocol.TokenizeRequest,
    protocol.TranscriptionRequest,
)
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_STATUSES = {
    400: "a field, part or medium that cannot be used",
    401: "no key, or a wrong one",
    404: "no such model",
    408: "the body came too slowly",
    413: "the body or a medium is too large",
    429: "the queue is full; see Retry-After",
    503: "the model is being loaded",
}


def openapi_document() -> dict[str, Any]:
    """Return the document."""
    schemas = models_json_schema(
        [(model, "validation") for model in _BODIES], ref_template="#/components/schemas/{model}"
    )[1]["$defs"]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tianquan", "version": tianquan.__version__},
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/chat/completions": {"post": _operation("Answer a conversation", protocol.ChatRequest)},
            "/v1/completions": {"post": _operation("Continue plain text", protocol.CompletionRequest)},
            "/v1/audio/transcriptions": {"post": _operation("Transcribe a recording", protocol.TranscriptionRequest)},
            "/tokenize": {"post": _operation("Count and show tokens", protocol.TokenizeRequest)},
            "/v1/models": {"get": _operation("List the models served")},
            "/v1/models/{model}": {
                "get": {
                    **_operation("Describe a model"),
                    "parameters": [
                        {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}},
                    ],
                }
            },
            "/health": {"get": {**_operation("200 when ready, 503 while loading"), "security": []}},
            "/metrics": {"get": _operation("Prometheus metrics")},
        },
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(summary: str, body: type[protocol.Body] | None = None) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {"200": {"description": "done"}}
    responses |= {str(status): {"description": text, "content": error} for status, text in _STATUSES.items()}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    return operation


def _content(body: type[protocol.Body]) -> dict[str, Any]:
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{body.__name__}"}
    if body is not protocol.TranscriptionRequest:
        return {"application/json": {"schema": schema}}
    file = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}, "required": ["file"]}
    return {"multipart/form-data": {"schema": {"allOf": [file, schema]}}}
