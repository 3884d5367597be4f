"""Tools a model may call: how they are told to it, what a call looks like, and finding calls in an answer.

The checkpoint's template knows no tools, so they are told in the system prompt, and a call is text of this form,
one after the other, with other text before them if the model likes:

    <tool_call>{"name": "weather", "arguments": {"city": "Xi'an"}}</tool_call>

Between the tags stands a JSON object with exactly `name`, one of the tools told, and `arguments`, an object.
Text that only looks like a call (bad JSON, an unknown name, no end) stays text: nothing is repaired. With
`tool_format` the engine lets nothing but one call through, with arguments after the tool's schema.
This is the form Qwen and Hermes models use, and most clients know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tianquan.errors import ParameterError
from tianquan.request import OutputFormat

MAX_TOOLS = 64
MAX_TOOLS_LEN = 64 * 1024  # characters of all descriptions and schemas as JSON
# llguidance's own key in a schema: a model cannot fill its call with spaces, as in `engine/constraints.py`.
_NO_ENDLESS_SPACE = {"x-guidance": {"whitespace_pattern": r"\n? {0,8}"}}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_VALUES = frozenset({"const", "enum", "default", "examples"})  # of a schema: what looks like one there is none
_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
_CALL_START = re.compile(r"<tool_call>\s*")
_CALL_END = re.compile(r"\s*</tool_call>")


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One function the model may ask for. `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """A call the model asked for; `arguments` is a JSON object as text, as OpenAI's clients expect it."""

    name: str
    arguments: str


def parse_tools(value: Any) -> tuple[Tool, ...]:
    """Return the tools of OpenAI's form: [{"type": "function", "function": {"name", "description", "parameters"}}].

    Raises:
        ParameterError: of another form, too many or too long, or two of one name.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not 1 <= len(value) <= MAX_TOOLS:
        raise ParameterError(f"tools must be a list of 1 to {MAX_TOOLS} functions")
    tools = tuple(_parse_tool(tool, f"tools[{n}]") for n, tool in enumerate(value))
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise ParameterError("two tools have one name; each needs its own")
    try:
        length = len(_describe(tools))
    except (TypeError, ValueError, RecursionError) as error:
        raise ParameterError("the tools' parameters are not plain JSON of usual depth") from error
    if length > MAX_TOOLS_LEN:
        raise ParameterError(f"the tools take {length} characters, at most {MAX_TOOLS_LEN} are taken; shorten them")
    return tools


def _parse_tool(value: Any, where: str) -> Tool:
    if not isinstance(value, dict) or value.get("type") != "function" or not isinstance(value.get("function"), dict):
        raise ParameterError(f'{where} must be {{"type": "function", "function": {{...}}}}')
    function = value["function"]
    unknown = sorted(set(function) - {"name", "description", "parameters", "strict"}, key=str)
    name, description = function.get("name"), function.get("description", "")
    parameters = function.get("parameters", {"type": "object", "properties": {}})
    if unknown:
        raise ParameterError(f"{where}.function has {len(unknown)} keys that are not supported")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ParameterError(f"{where}.function.name must be 1 to 64 letters, digits, _ or -")
    if not isinstance(description, str) or not isinstance(parameters, dict):
        raise ParameterError(f"{where}.function needs a description (string) and parameters (a JSON schema)")
    if parameters.get("type", "object") != "object":
        raise ParameterError(f"{where}.function.parameters.type must be object: arguments have names")
    return Tool(name=name, description=description, parameters=parameters)


def _describe(tools: Sequence[Tool]) -> str:
    return "\n".join(json.dumps(vars(tool), ensure_ascii=False, allow_nan=False) for tool in tools)


def tool_instructions(tools: Sequence[Tool]) -> str:
    """Return the text that tells the model of its tools, for the end of the system prompt."""
    return (
        "You may call these functions, one JSON description per line:\n"
        f"{_describe(tools)}\n"
        "To call one, answer with nothing behind it:\n"
        '<tool_call>{"name": "the function\'s name", "arguments": {...}}</tool_call>'
    )


def tool_format(tools: Sequence[Tool], name: str | None = None) -> OutputFormat:
    """Return the form of exactly one call: of the named tool, or of any.

    Raises:
        ParameterError: there is no tool of that name.
    """
    chosen = [tool for tool in tools if name is None or tool.name == name]
    if not chosen:
        raise ParameterError(f"there is no tool of the name asked for; expected one of {len(tools)} told")
    calls = []
    definitions = {str(n): _moved(tool.parameters, f"#/$defs/{n}") for n, tool in enumerate(chosen)}
    for n, tool in enumerate(chosen):
        arguments = {"allOf": [{"type": "object"}, {"$ref": f"#/$defs/{n}"}]}
        properties = {"name": {"const": tool.name}, "arguments": arguments}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = {**_NO_ENDLESS_SPACE, **(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": definitions}
    return OutputFormat(
        kind="grammar", definition=f'start: "<tool_call>" call "</tool_call>"\ncall: %json {json.dumps(schema)}'
    )


def _moved(schema: Any, root: str) -> Any:
    """Return a schema whose references to itself are right where it is no document of its own, but lies at `root`."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):  # its keys are names, whatever they look like
            moved[key] = {name: _moved(named, root) for name, named in value.items()}
        else:
            moved[key] = value if key in _VALUES else _moved(value, root)
    reference = moved.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = root + reference[1:]
    return moved


def parse_tool_calls(text: str, tools: Sequence[Tool]) -> tuple[str, tuple[ToolCall, ...]]:
    """Return an answer's text without its calls, and the calls; see the head of this file for their form."""
    names = {tool.name for tool in tools}
    calls: list[ToolCall] = []
    rest, end = "", 0  # the text beside calls, and where what was looked at ends
    while (start := _CALL_START.search(text, end)) is not None:
        found = _parse_call(text, start.end(), names)
        if found is None:
            rest, end = rest + text[end : start.end()], start.end()
        else:
            call, behind = found
            calls.append(call)
            rest, end = rest + text[end : start.start()], behind
    return ((rest + text[end:]).strip() if calls else text), tuple(calls)


def _parse_call(text: str, at: int, names: Collection[str]) -> tuple[ToolCall, int] | None:
    """Return the call whose object begins at a place, and where its end tag ends; None where there is no call.

    The object is read as JSON first: an end tag inside one of its strings is part of the string.
    """
    try:
        value, behind = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    end = _CALL_END.match(text, behind)
    if end is None or not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return None
    if not isinstance(value["name"], str) or value["name"] not in names or not isinstance(value["arguments"], dict):
        return None
    try:
        arguments = json.dumps(value["arguments"], ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number beyond float64: no client could read it
        return None
    if not arguments.isascii() and _HALF_CHARACTER.search(arguments):  # no UTF-8: it stays an escape
        arguments = json.dumps(value["arguments"])
    return ToolCall(value["name"], arguments), end.end()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
