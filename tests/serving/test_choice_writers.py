from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tianquan.serving.choice_writers import ChatWriter
from tianquan.serving.generation import Piece
from tianquan.serving.response_forms import AnswerForm
from tianquan.tools import parse_tools

TOOLS = parse_tools([{"type": "function", "function": {"name": "clock"}}])
CALL = '<tool_call>{"name": "clock", "arguments": {"zone": "你"}}</tool_call>'
PARTS = st.sampled_from([CALL, "a", " ", "\n", "<", "<tool", "<tool_call>", "</tool_call>", "{}", "text"])


def writer(only_one=False):
    return ChatWriter(AnswerForm("chatcmpl", "1", 0, "tiny"), None, False, TOOLS, only_one)


def streamed(text, cuts, only_one=False):
    """Return what a client puts together of the chunks of a text cut into pieces."""
    one, content, calls, reason, start = writer(only_one), "", [], None, 0
    choices = []
    for stop in [*sorted(cuts), len(text)]:
        choices.append(one.piece(Piece(0, text[start:stop])))
        start = stop
    choices += one.end(0, "stop")
    for choice in filter(None, choices):
        content += choice["delta"].get("content") or ""
        calls += choice["delta"].get("tool_calls", ())
        reason = choice["finish_reason"]
    return content, [call["function"] for call in calls], reason


@given(st.lists(PARTS, max_size=6).map("".join), st.data())
def test_a_stream_says_what_the_whole_says(text, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    content, calls, reason = streamed(text, cuts)
    whole = writer().whole(0, text, (), "stop")
    assert calls == [call["function"] for call in whole["message"].get("tool_calls", ())]
    assert reason == whole["finish_reason"]
    if calls:
        assert content.strip() == (whole["message"]["content"] or "")
    else:
        assert content == whole["message"]["content"] == text


def test_text_before_a_call_is_not_held_back():
    one = writer()
    assert one.piece(Piece(0, "Let me look. <"))["delta"]["content"] == "Let me look. "
    assert one.piece(Piece(0, "b> or <tool"))["delta"]["content"] == "<b> or "
    assert one.piece(Piece(0, '_call>{"name": "clock"')) is None


def test_one_call_when_one_is_wanted():
    _, calls, reason = streamed(CALL + CALL, [], only_one=True)
    assert [json.loads(call["arguments"]) for call in calls] == [{"zone": "你"}]
    assert reason == "tool_calls"
