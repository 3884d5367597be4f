from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tianquan.engine.constraints import ConstraintCompiler, Vocabulary
from tianquan.errors import BackendError, ModelError, ParameterError
from tianquan.request import OutputFormat, SamplingParams

MESSAGES = [{"role": "user", "content": "Answer in the form you are given."}]
HOT = SamplingParams(temperature=1.5, max_tokens=300, seed=1)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 9},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "legs", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def native_llm(bench):
    return bench.llm


def ask(llm, kind, definition, **params):
    text = definition if isinstance(definition, str) else json.dumps(definition)
    form = OutputFormat(kind=kind, definition=text)
    return llm.chat(MESSAGES, sampling=replace(HOT, output_format=form, **params))


@settings(max_examples=8, derandomize=True)
@given(seed=st.integers(0, 1000))
def test_json_keeps_to_its_schema(native_llm, seed):
    """Random weights write noise; under a schema they write what it asks for."""
    completion = ask(native_llm, "json_schema", SCHEMA, seed=seed)
    assert completion.finish_reason == "stop"
    value = json.loads(completion.text)
    assert set(value) == {"name", "legs", "tags"}
    assert value["name"] in ("cat", "dog")
    assert 0 <= value["legs"] <= 9
    assert all(isinstance(tag, bool) for tag in value["tags"])


def test_regex_choice_and_grammar(native_llm):
    assert re.fullmatch(r"[ab]{3}-\d\d", ask(native_llm, "regex", r"[ab]{3}-\d\d").text)
    choices = ["yes", 'no, "never"', "也许"]
    got = {ask(native_llm, "choice", choices, seed=seed).text for seed in range(8)}
    assert got <= set(choices)
    assert len(got) > 1
    assert re.fullmatch(r"(ab)+!", ask(native_llm, "grammar", 'start: ("a" "b")+ "!"').text)


def test_a_form_holds_greedily_and_with_drafts(bench):
    compiler_llm = bench.llm
    for speculation in (False, True):
        engine = bench.engine(speculation=speculation)
        constraint = compiler_llm.constraint(OutputFormat(kind="regex", definition="(la ){20}end"))
        request = bench.request(
            bench.prompt("la la la la la"),
            constraint=constraint,
            max_tokens=100,
            stop_token_ids=compiler_llm.checkpoint.stop_token_ids,
        )
        token_ids, reason = [], None
        engine.add(request)
        while engine.has_work:
            for output in engine.step():
                token_ids += output.token_ids
                reason = output.end and output.end.reason
        assert compiler_llm.tokenizer.decode(token_ids) == "la " * 20 + "end"
        assert reason == "stop"
    assert engine.statistics().accepted_tokens > 0


@pytest.mark.parametrize(
    ("kind", "definition", "message"),
    [
        ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, "minimum .5. is greater than maximum"),
        ("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable schema"),
        ("json_schema", {"type": "objekt"}, "Invalid type: objekt"),
        ("json_schema", "{", "not valid JSON"),
        ("json_schema", "[" * 60000, "not valid JSON"),
        ("json_schema", "3", "must be an object, got int"),
        ("json_schema", "false", "must be an object, got bool"),
        ("json_schema", '{"items":' * 500 + "{}" + "}" * 500, "nested more than 64 deep"),
        ("json_schema", {"$ref": "https://example.org/schema.json"}, "cannot be used"),
        ("json_schema", {"$ref": "#"}, "without end"),
        ("json_schema", {"type": "integer", "minimum": -(10**300)}, "a number or a text that cannot be used"),
        ("json_schema", {"const": "\ud800"}, "a number or a text that cannot be used"),
        ("regex", "[ab{3}(", "regex cannot be used"),
        ("grammar", "start: foo", "grammar cannot be used"),
        ("choice", [], "list of strings"),
        ("choice", ["a", 3], "list of strings"),
        ("choice", ["a"] * 2000, "got 2000 of up to 1"),
    ],
)
def test_forms_that_cannot_be(native_llm, kind, definition, message):
    with pytest.raises(ParameterError, match=message) as error:
        ask(native_llm, kind, definition)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_form_without_end_ends_its_own_answer(native_llm):
    with pytest.raises(ModelError, match="too complex to follow; simplify"):
        ask(native_llm, "grammar", 'start: "a" start')
    assert ask(native_llm, "choice", ["yes"]).text == "yes"


def test_without_the_library_a_form_is_refused_in_one_line(native_llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BackendError, match=r"pip install 'tianquan\[structured\]'"):
        ConstraintCompiler(Vocabulary((b"a",), frozenset(), frozenset({0}), list))


def test_a_form_ends_the_answer_itself():
    form = OutputFormat(kind="regex", definition="a")
    from tianquan.engine.parameter_checks import check_params

    with pytest.raises(ParameterError, match="says itself when the answer ends"):
        check_params(SamplingParams(output_format=form, ignore_eos=True))


def test_choices_differ_by_seed_and_begin_with_chats(native_llm):
    sampling = SamplingParams(temperature=1.5, max_tokens=8, seed=4, n=3)
    texts = [completion.text for completion in native_llm.choices(MESSAGES, sampling=sampling)]
    assert len(set(texts)) == 3
    assert texts[0] == native_llm.chat(MESSAGES, sampling=replace(sampling, n=1)).text
    with pytest.raises(ParameterError, match="n is 3"):
        native_llm.chat(MESSAGES, sampling=sampling)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 1_000_003},
        {"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]},
        {"properties": {"a": {"items": [{"multipleOf": 0.0999979}]}}},
    ],
)
def test_multiples_that_take_too_long_are_refused(native_llm, schema):
    with pytest.raises(ParameterError, match="asks for multiples of"):
        native_llm.constraint(OutputFormat(kind="json_schema", definition=json.dumps(schema)))
    grammar = f"start: %json {json.dumps(schema)}"
    with pytest.raises(ParameterError, match="asks for multiples of"):
        native_llm.constraint(OutputFormat(kind="grammar", definition=grammar))


def test_multiples_that_are_usual_are_not(native_llm):
    schema = {"properties": {"a": {"multipleOf": 0.01}, "b": {"multipleOf": 1000}, "c": {"multipleOf": 60}}}
    native_llm.constraint(OutputFormat(kind="json_schema", definition=json.dumps({"type": "object", **schema})))


def test_a_long_chain_of_rules_is_refused(native_llm):
    rules = "\n".join(f"a{n}: a{n + 1}" for n in range(3000))
    with pytest.raises(ParameterError, match="more than 1000 rules"):
        native_llm.constraint(OutputFormat(kind="grammar", definition=f'start: a0\n{rules}\na3000: "a"'))


def test_numbers_beyond_float64_are_no_json(native_llm):
    with pytest.raises(ParameterError, match="not valid JSON"):
        native_llm.constraint(OutputFormat(kind="json_schema", definition='{"enum": [1.0, 1e400]}'))
