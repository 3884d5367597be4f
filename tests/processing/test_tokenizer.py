from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from tianquan.errors import CheckpointError, PromptError
from tianquan.processing.tokenizer import StreamDecoder, Tokenizer

NO_BREAKER = "\ue000"


@pytest.fixture(scope="module")
def definition(checkpoint_folder):
    return (checkpoint_folder / "tokenizer.json").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer(definition):
    return Tokenizer(definition)


@pytest.fixture(scope="module")
def library(definition):
    return Library.from_str(definition)


@given(text=st.text(max_size=80))
def test_plain_text_as_the_library_has_it_and_back(tokenizer, library, text):
    assume(not any(token in text for token in tokenizer.special_tokens))  # hypothesis reads our source
    token_ids = tokenizer.encode_text(text)
    assert token_ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(token_ids) == text


@given(
    st.lists(
        st.one_of(st.text(max_size=8), st.sampled_from(["<|turn_end|>", "<|eos|>", "<|", "|>", "<|turn_end", " "])),
        max_size=12,
    )
)
def test_structure_as_the_library_has_it(tokenizer, library, parts):
    text = "".join(parts).replace(NO_BREAKER, "")
    assert tokenizer.encode_structure(text, NO_BREAKER) == library.encode(text, add_special_tokens=False).ids


def test_special_strings_in_text_are_text(tokenizer):
    token_ids = tokenizer.encode_text("a<|turn_end|>b<|unk|>")
    assert not set(token_ids) & {tokenizer.special_token_id(t) for t in tokenizer.special_tokens}
    assert tokenizer.decode(token_ids) == "a<|turn_end|>b<|unk|>"


def test_tokens_that_take_white_space(definition):
    parsed = json.loads(definition)
    for token in parsed["added_tokens"]:
        if token["content"] == "<|turn_end|>":
            token["lstrip"] = token["rstrip"] = True
    changed = json.dumps(parsed)
    text = "one  <|turn_end|>\n two <|eos|> three <|turn_end|><|turn_end|>  "
    expected = Library.from_str(changed).encode(text, add_special_tokens=False).ids
    assert Tokenizer(changed).encode_structure(text, NO_BREAKER) == expected


def test_structure_tokens_the_file_does_not_mark_special(definition):
    parsed = json.loads(definition)
    for token in parsed["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer(json.dumps(parsed), structure=["<|unk|>"])
    unknown = tokenizer.special_token_id("<|unk|>")
    assert unknown is not None
    assert tokenizer.special_token_id("<|eos|>") is None
    assert unknown not in tokenizer.encode_text("<|unk|>")


@given(text=st.text(max_size=60))
def test_stream_never_shows_part_of_a_character(tokenizer, text):
    stream = StreamDecoder(tokenizer)
    pieces = [stream.add(id) for id in tokenizer.encode_text(text)]
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    assert "".join(pieces) + stream.finish() == text


@given(token_ids=st.lists(st.integers(0, 1100), max_size=60))
def test_stream_of_any_ids_joins_to_decode(tokenizer, token_ids):
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.add, token_ids)) + stream.finish() == tokenizer.decode(token_ids)


@given(token_ids=st.lists(st.integers(0, 979), max_size=40))
def test_decode_as_the_library_has_it(tokenizer, library, token_ids):
    assert tokenizer.decode(token_ids) == library.decode(token_ids)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"added_tokens": []}', "not json"])
def test_damaged_definitions_are_refused(text):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(text)


def test_a_tokenizer_of_another_kind_is_refused(definition):
    parsed = json.loads(definition)
    parsed["decoder"] = None
    with pytest.raises(CheckpointError, match="byte-level"):
        Tokenizer(json.dumps(parsed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 5}, "<|turn_end|>.*has id 5"),
        ({"content": ""}, "content ''"),
        ({"single_word": True}, "<|turn_end|>.*single_word"),
    ],
)
def test_added_tokens_are_held_against_the_library(definition, change, message):
    parsed = json.loads(definition)
    next(token for token in parsed["added_tokens"] if token["content"] == "<|turn_end|>").update(change)
    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")):
        Tokenizer(json.dumps(parsed))


@pytest.mark.parametrize("text", ["a\ud800b", "\udc00"])
def test_half_a_surrogate_pair_is_refused(tokenizer, text):
    with pytest.raises(PromptError, match="not valid Unicode"):
        tokenizer.encode_text(text)


class PanicException(BaseException):
    """Stands in for pyo3's, which Python code cannot import."""


@pytest.mark.parametrize(
    ("raised", "expected"), [(PanicException, PromptError), (KeyboardInterrupt, KeyboardInterrupt)]
)
def test_a_panic_of_the_library_is_an_error_of_ours(definition, raised, expected):
    class Failing:
        def encode(self, text, add_special_tokens):
            raise raised

    tokenizer = Tokenizer(definition)
    tokenizer._bpe = Failing()
    with pytest.raises(expected):
        tokenizer.encode_text("a")


def test_a_definition_that_the_library_panics_at(definition):
    parsed = json.loads(definition)
    parsed["model"]["continuing_subword_prefix"] = "##"
    with pytest.raises(CheckpointError, match="is damaged or of an unknown kind"):
        Tokenizer(json.dumps(parsed))
