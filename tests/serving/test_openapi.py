"""The published document, and whatever it allows: no request ends in a 500."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BOUNDED = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
WORDS = st.text(alphabet=string.printable + "你\0\x7fé\U0001f600", max_size=12)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
SMALL = st.integers(-3, 6)


class Schemas:
    """Strategies for the document's schemas: mostly what they allow, now and then something else."""

    def __init__(self, document) -> None:
        self._schemas = document["components"]["schemas"]

    def strategy(self, schema, depth=0):
        valid = self._valid(schema, depth)
        return st.one_of(*[valid] * 12, ANY_JSON) if depth < 4 else valid

    def _valid(self, schema, depth):
        if "$ref" in schema:
            return self.strategy(self._schemas[schema["$ref"].rsplit("/", 1)[1]], depth)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return st.one_of(*(self.strategy(option, depth + 1) for option in schema[key]))
        if "const" in schema:
            return st.just(schema["const"])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            most = min(schema.get("maxItems", 3), 3)
            return st.lists(self.strategy(schema.get("items", {}), depth + 1), min_size=min(1, most), max_size=most)
        return {
            "string": st.just("hello") | WORDS,
            "integer": SMALL | st.integers(),
            "number": st.sampled_from([0, 0.5, 1, 2, -1]) | st.floats(allow_nan=False, allow_infinity=False),
            "boolean": st.booleans(),
            "null": st.none(),
        }.get(kind, ANY_JSON)

    def _object(self, schema, depth):
        fields = schema.get("properties")
        if not fields:
            return st.dictionaries(WORDS, ANY_JSON, max_size=3)
        required = schema.get("required", [])
        given_fields = {name: self.strategy(fields[name], depth + 1) for name in required}
        others = sorted(set(fields) - set(required))
        chosen = st.lists(st.sampled_from(others), max_size=3, unique=True) if others else st.just([])
        optional = chosen.flatmap(
            lambda names: st.fixed_dictionaries({name: self.strategy(fields[name], depth + 1) for name in names})
        )
        return st.builds(lambda a, b: {**a, **b}, st.fixed_dictionaries(given_fields), optional)


@pytest.fixture(scope="module")
def document(server):
    return server.get("/openapi.json").json


@pytest.fixture(scope="module")
def short(serve):
    """A server whose answers are short: what is tested is the way there."""
    with serve(max_model_len=200, max_tokens=4) as server:
        yield server


def test_the_document_names_every_route(document):
    from tianquan.serving.routes import ROUTES

    described = {path for path in document["paths"] if "{" not in path}
    assert described == set(ROUTES) - {"/openapi.json"}
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["responses"]["401"], path


def test_every_reference_leads_somewhere(document):
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_no_body_is_a_500(short, document, path):
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    bodies = Schemas(document).strategy(content["schema"])

    @BOUNDED
    @given(bodies)
    def check(body):
        reply = short.post(path, body)
        assert reply.status in (200, 400, 404, 413), reply.data
        if reply.status != 200:
            assert set(reply.error) == {"message", "type", "param", "code"}

    check()


def test_no_form_is_a_500(short, document):
    fields = document["components"]["schemas"]["TranscriptionRequest"]["properties"]
    names = st.sampled_from([*fields, "surprise"])
    values = st.sampled_from(["", "1", "0.5", "true", "json", "en", "-1", "1e999", "{}", "你"])

    @BOUNDED
    @given(st.dictionaries(names, values, max_size=3), st.binary(max_size=60), st.sampled_from([b"", b"RIFF", b"OggS"]))
    def check(form, content, head):
        assert short.upload(head + content, **form).status in (400, 404)

    check()


@BOUNDED
@given(st.lists(st.sampled_from(["v1", "..", "models", "%2e%2e", "", "health", "metrics", "a"]), max_size=5))
def test_no_path_is_a_500(server, parts):
    reply = server.get("/" + "/".join(parts))
    assert reply.status in (200, 404)


def test_wrong_methods(server, document):
    for path, methods in document["paths"].items():
        reply = server.request("DELETE", path.replace("{model}", "tiny"))
        assert reply.status == 405
        assert reply.headers["allow"].lower() in methods
