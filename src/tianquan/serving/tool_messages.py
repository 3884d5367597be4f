"""Tools between OpenAI's fields and what the model reads: text. The form of a call is that of `tianquan.tools`."""

from __future__ import annotations

import json
from typing import Any

from tianquan.errors import ParameterError
from tianquan.request import OutputFormat
from tianquan.serving import protocol
from tianquan.serving.api_error import ApiError, as_api_error
from tianquan.tools import Tool, parse_tools, tool_format, tool_instructions


def told_tools(body: protocol.ChatRequest) -> tuple[Tool, ...]:
    """Return the tools the model is told of: none where the client's choice is none.

    Raises:
        ApiError: tools that cannot be used, or a choice without them.
    """
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice needs tools", param="tool_choice", code="invalid_value")
        return ()
    try:
        tools = parse_tools([tool.model_dump(exclude_none=True) for tool in body.tools])
    except ParameterError as error:
        raise as_api_error(error, "tools") from error
    return () if body.tool_choice == "none" else tools


def forced_format(body: protocol.ChatRequest, tools: tuple[Tool, ...]) -> OutputFormat | None:
    """Return the form of an answer that must be a call.

    Raises:
        ApiError: no tool of the name asked for.
    """
    choice = body.tool_choice
    if choice in (None, "none", "auto"):
        return None
    name = choice.function.name if isinstance(choice, protocol.NamedTool) else None
    try:
        return tool_format(tools, name)
    except ParameterError as error:
        raise as_api_error(error, "tool_choice") from error


def with_tools(messages: list[dict[str, Any]], tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    """Return a conversation whose system prompt ends with the tools."""
    if not tools:
        return messages
    instructions = tool_instructions(tools)
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": instructions}, *messages]
    return [{"role": "system", "content": f"{first['content']}\n\n{instructions}"}, *messages[1:]]


def calls_as_text(calls: list[protocol.ToolCall], where: str) -> str:
    """Return earlier calls in the form the model writes them.

    Raises:
        ApiError: arguments that are no JSON object.
    """
    lines = []
    for n, call in enumerate(calls):
        try:
            arguments = json.loads(call.function.arguments or "{}")  # of a call without any
            text = json.dumps({"name": call.function.name, "arguments": arguments}, ensure_ascii=False)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            param = f"{where}.tool_calls[{n}].function.arguments"
            raise ApiError(400, f"{param} must be a JSON object as text", param=param, code="invalid_value")
        lines.append(f"<tool_call>{text}</tool_call>")
    return "\n".join(lines)
