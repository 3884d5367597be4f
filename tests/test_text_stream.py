from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tianquan.text_stream import TextStream


def run(tokenizer, text, stops):
    stream = TextStream(tokenizer, stops)
    pieces = []
    for id in tokenizer.encode_text(text):
        pieces.append(stream.add(id))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return "".join(pieces), stream.stopped


@given(
    text=st.text(alphabet="abc 你好", max_size=40),
    stops=st.lists(st.text("abc 你好", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_a_stop_string(processor, text, stops):
    got, stopped = run(processor.tokenizer, text, stops)
    assert stopped == any(stop in text for stop in stops)
    if stopped:  # the stop string that is complete first ends the answer
        assert any(text[len(got) :].startswith(stop) for stop in stops)
        assert not any(stop in got for stop in stops)
    else:
        assert got == text


def test_what_may_become_a_stop_string_is_held_back(processor):
    tokenizer = processor.tokenizer
    stream = TextStream(tokenizer, ["END."])
    shown = [stream.add(id) for id in tokenizer.encode_text("the EN")]
    assert "".join(shown) == "the "
    assert stream.finish() == "EN"
