from __future__ import annotations

import json
from dataclasses import replace

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tianquan
from tianquan.errors import ParameterError
from tianquan.request import SamplingParams
from tianquan.tools import ToolCall, parse_tool_calls, parse_tools, tool_format, tool_instructions

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Xi'an", "北京"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = parse_tools([WEATHER, CLOCK])


def test_calls_are_found_and_other_text_stays():
    text = 'Let me look.\n<tool_call>{"name": "weather", "arguments": {"city": "北京"}}</tool_call>\n'
    text += '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert parse_tool_calls(text, TOOLS) == (
        "Let me look.",
        (ToolCall("weather", '{"city": "北京"}'), ToolCall("clock", "{}")),
    )


def test_the_end_tag_may_be_in_an_argument():
    call = '{"name": "weather", "arguments": {"city": "</tool_call>"}}'
    assert parse_tool_calls(f"<tool_call>{call}</tool_call>", TOOLS) == (
        "",
        (ToolCall("weather", '{"city": "</tool_call>"}'),),
    )


@pytest.mark.parametrize(
    "text",
    [
        "plain ",
        '<tool_call>{"name": "clock", "arguments": {"at": NaN}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {}}',
        '<tool_call>{"name": "rocket", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "clock"}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": {}, "more": 1}</tool_call>',
        '<tool_call>{"name": ["clock"], "arguments": {}}</tool_call>',
        "<tool_call>[1]</tool_call>",
        "<tool_call>{</tool_call>",
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
    ],
)
def test_what_only_looks_like_a_call_is_text(text):
    assert parse_tool_calls(text, TOOLS) == (text, ())


@given(st.text(alphabet='<>/tool_call{}"name:agumets, ', max_size=80))
def test_any_text_is_survived(text):
    rest, calls = parse_tool_calls(text, TOOLS)
    assert calls or rest == text


@pytest.mark.parametrize(
    "value",
    [
        None, [], "weather", [3], [{"type": "function"}], [{"type": "function", "function": {"name": "a b"}}],
        [CLOCK, CLOCK], [CLOCK] * 65, [{"type": "function", "function": {"name": "x", "parameters": []}}],
        [{"type": "function", "function": {"name": "x", "surprise": 1}}],
        [{"type": "function", "function": {"name": "x", "description": "y" * 100_000}}],
        [{"type": "function", "function": {"name": "x", "parameters": {"a": float("nan")}}}],
        [{"type": "function", "function": {"name": "x", "parameters": {"type": "string"}}}],
    ],
)  # fmt: skip
def test_bad_tools_are_refused_in_one_line(value):
    with pytest.raises(ParameterError) as error:
        parse_tools(value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_instructions_name_every_tool():
    text = tool_instructions(TOOLS)
    assert '"name": "weather"' in text
    assert '"name": "clock"' in text
    assert "<tool_call>" in text


def test_half_a_character_in_an_argument_stays_an_escape():
    text = r'<tool_call>{"name": "clock", "arguments": {"zone": "\ud83d 你"}}</tool_call>'
    _, (call,) = parse_tool_calls(text, TOOLS)
    assert call.arguments.encode()
    assert json.loads(call.arguments) == {"zone": "\ud83d 你"}


def accepts(form, text):
    """Whether a form takes a text to its end."""
    tokenizer = llguidance.LLTokenizer("byte")
    grammar = llguidance.grammar_from("grammar", form.definition)
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    assert not matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("parameters", "good", "bad"),
    [
        (
            {
                "type": "object",
                "properties": {"p": {"$ref": "#/$defs/Point"}},
                "required": ["p"],
                "additionalProperties": False,
                "$defs": {"Point": POINT},
            },
            {"p": {"x": 1}},
            {"p": {"x": "one"}},
        ),
        (
            {
                "type": "object",
                "properties": {"next": {"$ref": "#"}, "n": {"enum": [1]}},
                "required": ["n"],
                "additionalProperties": False,
            },
            {"next": {"n": 1}, "n": 1},
            {"next": {"n": 2}, "n": 1},
        ),
        (
            {
                "type": "object",
                "properties": {"default": {"$ref": "#/$defs/Point"}, "$ref": {"type": "integer"}},
                "required": ["default", "$ref"],
                "additionalProperties": False,
                "$defs": {"Point": POINT},
            },
            {"default": {"x": 1}, "$ref": 3},
            {"default": {"x": "one"}, "$ref": 3},
        ),
        ({"$ref": "#/definitions/Point", "definitions": {"Point": POINT}}, {"x": 1}, {}),
        ({}, {"anything": [1]}, [1]),
    ],
)
@pytest.mark.parametrize("others", [[], [CLOCK]])
def test_a_schema_keeps_its_meaning_inside_a_call(parameters, good, bad, others):
    """References of a tool's schema are from its own root, and arguments are an object always."""
    named = {"type": "function", "function": {"name": "draw", "parameters": parameters}}
    form = tool_format(parse_tools([named, *others]))
    for arguments, is_good in ((good, True), (bad, False)):
        call = json.dumps({"name": "draw", "arguments": arguments})
        assert accepts(form, f"<tool_call>{call}</tool_call>") == is_good


@pytest.mark.parametrize("name", [None, "weather"])
def test_a_required_call_is_a_call(checkpoint_folder, name):
    """Random weights call a tool when the form asks for it, with arguments after its schema."""
    llm = tianquan.load(checkpoint_folder, precision="float32")
    no_arguments = {"type": "object", "properties": {}, "additionalProperties": False}  # random ones would not end
    tools = parse_tools([WEATHER, {"type": "function", "function": {"name": "clock", "parameters": no_arguments}}])
    sampling = SamplingParams(temperature=1.2, max_tokens=200, output_format=tool_format(tools, name))
    for seed in range(3):
        completion = llm.chat([{"role": "user", "content": "?"}], sampling=replace(sampling, seed=seed))
        rest, calls = parse_tool_calls(completion.text, TOOLS)
        assert rest == ""
        assert len(calls) == 1
        assert name in (None, calls[0].name)
        if calls[0].name == "weather":
            arguments = json.loads(calls[0].arguments)
            assert arguments["city"] in ("Xi'an", "北京")
            assert 1 <= arguments["days"] <= 7
    with pytest.raises(ParameterError, match="no tool of the name"):
        tool_format(TOOLS, "rocket")


def test_arguments_that_no_client_could_read_are_text():
    text = '<tool_call>{"name": "clock", "arguments": {"zone": 1e999}}</tool_call>'
    assert parse_tool_calls(text, TOOLS) == (text, ())
