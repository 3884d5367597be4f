from __future__ import annotations

import json

import numpy as np
import pytest

from json_files import edit_json
from tianquan.checkpoint import open_checkpoint
from tianquan.request import MediaPolicy
from tianquan.training.examples import build_example
from tianquan.training.records import RecordError, parse_record, read_records

TALK = [
    {"role": "user", "content": {"text": "What is it?", "image": "shapes_640x480.png"}},
    {"role": "assistant", "content": "A circle. 圆形"},
    {"role": "user", "content": {"audio": "speech_1s_16k.wav"}},
    {"role": "assistant", "content": {"text": "Two"}},
]


def record(turns, key="conversations"):
    return parse_record(json.dumps({key: turns, "task": "t"}), "file:1")


def example(processor, turns, media_root, max_tokens=4096):
    return build_example(processor, record(turns), MediaPolicy(), media_root, max_tokens)


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_the_loss_counts_the_assistant_and_its_end(processor, media_root, key):
    built = build_example(processor, record(TALK, key), MediaPolicy(), media_root, 4096)
    counted = built.prompt.token_ids[built.loss_mask].tolist()
    end = processor.tokenizer.special_token_id("<|turn_end|>")
    encode = processor.tokenizer.encode_text
    assert counted == [*encode("A circle. 圆形"), end, *encode("Two"), end]
    for span in built.prompt.spans:
        assert not built.loss_mask[span.start : span.start + span.length].any()


def test_the_example_is_the_prompt_with_the_answer(processor, media_root):
    built = example(processor, TALK[:2], media_root)
    prompt = processor(TALK[:1], None, media_root)
    np.testing.assert_array_equal(built.prompt.token_ids[: len(prompt.token_ids)], prompt.token_ids)
    assert built.loss_mask.argmax() == len(prompt.token_ids)


def test_too_long_and_unreadable_records_name_their_line(processor, media_root):
    with pytest.raises(RecordError, match=r"file:1: .* window of 50"):
        example(processor, TALK, media_root, max_tokens=50)
    missing = [{"role": "user", "content": {"image": "none.png"}}, TALK[1]]
    with pytest.raises(RecordError, match=r"file:1: .*none\.png"):
        example(processor, missing, media_root)


def test_a_template_that_looks_ahead_is_refused(copied_folder):
    template = "{{ messages | length }}{% for m in messages %}<|role_start|>{{ m.content }}<|turn_end|>{% endfor %}"
    edit_json(copied_folder / "tokenizer_config.json", chat_template=template)
    processor = open_checkpoint(copied_folder).processor
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(RecordError, match="cannot be masked"):
        example(processor, turns, None)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"conversations": []}',
        '{"conversations": 5}',
        '{"conversations": [{"role": "user", "content": "x"}], "messages": []}',
        json.dumps({"messages": TALK[:1]}),
        json.dumps({"messages": TALK[1:]}),
        json.dumps({"messages": [TALK[0], TALK[0], TALK[1]]}),
        json.dumps({"messages": [TALK[0], {"role": "assistant", "content": ""}]}),
        json.dumps({"messages": [TALK[0], {"role": "assistant", "content": {"image": "a.png"}}]}),
        json.dumps({"messages": [{"role": "system", "content": "x"}]}),
    ],
)
def test_broken_records_name_their_line(line):
    with pytest.raises(RecordError, match="file:7"):
        parse_record(line, "file:7")


def test_files_of_records(tmp_path):
    path = tmp_path / "records.jsonl"
    line = json.dumps({"conversations": TALK, "task": "colour"})
    path.write_text(f"{line}\n\n{line}\n", encoding="utf-8")
    records = read_records(path)
    assert [one.source for one in records] == ["records.jsonl:1", "records.jsonl:3"]
    assert records[0].extra == {"task": "colour"}
    assert records[0].answer == "Two"
    path.write_text(f"{line}\nbroken\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"records\.jsonl:2"):
        read_records(path)
    path.write_text("\n")
    with pytest.raises(RecordError, match="no records"):
        read_records(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match=r"records\.jsonl:1: not UTF-8"):
        read_records(path)
    with pytest.raises(RecordError, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")
