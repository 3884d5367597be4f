"""What a request's log-probabilities are of, however many tokens come at a time, and where their texts begin."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import fields

import pytest

from tianquan.engine.interface import EngineRequest, RequestEnd, RequestOutput
from tianquan.request import SamplingParams, Timings, TokenLogprob, Usage
from tianquan.serving.generation import Generation, Inbox, Mailroom
from tianquan.serving.metrics import Metrics
from tianquan.serving.response_forms import TokenOffsets, completion_logprobs

MS = Timings(**{stage.name: 1.0 for stage in fields(Timings)})
END = RequestEnd(reason="stop", usage=Usage(1, 1, 0, 0), timings=MS)


PARTS = {300: b"\xe4\xb8", 301: b"\xad"}


class Bytes:
    """A tokenizer of which token n is the byte n, or part of a character."""

    def token_bytes(self, token_id):
        return PARTS.get(token_id, bytes([token_id % 256]))


def test_tokens_inside_a_character_begin_where_it_does():
    ids = [ord("a"), 300, 301, ord("b"), ord("c")]
    places = [TokenLogprob(n, -1.0, ((300, -1.0), (301, -2.0), (97, -3.0))) for n in ids]
    whole = completion_logprobs(Bytes(), places, TokenOffsets())
    assert whole["text_offset"] == [0, 1, 1, 2, 3]
    assert whole["tokens"] == ["a", r"bytes:\xe4\xb8", r"bytes:\xad", "b", "c"]
    assert [len(top) for top in whole["top_logprobs"]] == [3] * 5
    for cut in range(6):
        offsets = TokenOffsets()
        parts = [completion_logprobs(Bytes(), part, offsets)["text_offset"] for part in (places[:cut], places[cut:])]
        assert parts[0] + parts[1] == whole["text_offset"]


class Driver:
    """An engine that has the answer already, so many tokens a step."""

    def __init__(self, token_ids, cuts):
        self.steps = [token_ids[a:b] for a, b in itertools.pairwise((0, *cuts, len(token_ids)))]

    def submit(self, request, arrive, fail):
        for n, ids in enumerate(self.steps, 1):
            end = END if n == len(self.steps) else None
            places = tuple(TokenLogprob(token_id, -1.0, ()) for token_id in ids)
            arrive(RequestOutput(request_id=0, token_ids=tuple(ids), logprobs=places, end=end))
        return 0


async def answer(tokenizer, token_ids, cuts, stop):
    request = EngineRequest(prompt=None, sampling=SamplingParams(stop=stop, logprobs=0), stop_token_ids=frozenset())
    generation = Generation(
        Driver(token_ids, cuts), tokenizer, [request], Inbox(60.0), Mailroom(), Metrics(), began=time.monotonic()
    )
    pieces = [piece async for piece in generation.pieces()]
    return "".join(piece.text for piece in pieces), [place.token_id for piece in pieces for place in piece.logprobs]


@pytest.mark.parametrize(
    ("text", "stop", "said", "num_listed"),
    [
        ("abXYb", ("XY",), "ab", 2),
        ("abXb", ("XY",), "abXb", 4),
        ("XY", ("XY",), "", 0),
        ("abX", ("XY",), "abX", 3),
        ("a中b。", ("。",), "a中b", None),
    ],
)
def test_the_tokens_of_a_stop_string_are_not_listed(processor, text, stop, said, num_listed):
    """As many come at once as a draft had right, which changes nothing."""
    tokenizer = processor.tokenizer
    ids = [token_id for character in text for token_id in tokenizer.encode_text(character)]
    listed = set()
    for size in range(len(ids)):
        for cuts in itertools.combinations(range(1, len(ids)), size):
            got, places = asyncio.run(answer(tokenizer, ids, cuts, stop))
            assert got == said
            listed.add(tuple(places))
    assert len(listed) == 1
    assert num_listed in (None, len(listed.pop()))
