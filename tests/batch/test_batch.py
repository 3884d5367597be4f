from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from batch.rows_of_jobs import answers, chat_row, image_part, write_job
from tianquan.batch import output_file
from tianquan.batch.job import run_batch
from tianquan.errors import TianquanError


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(plan):
    tally = run_batch(plan)
    return tally, answers(plan.output)


def no_load(_):
    raise AssertionError("the model is not needed")


def test_mixed_rows_with_broken_ones_among_them(plan, tmp_path):
    codes = write_job(tmp_path / "in.jsonl", 60)
    tally, rows = run(plan())
    assert (tally.num_answers, tally.num_errors) == (50, 10)
    assert {n: row["error"]["code"] for n, row in enumerate(rows) if row["error"]} == codes
    inputs = (tmp_path / "in.jsonl").read_bytes().splitlines()
    for n, row in enumerate(rows):
        if n not in codes:
            assert row["custom_id"] == json.loads(inputs[n])["custom_id"]
            assert row["response"]["status_code"] == 200
            assert row["response"]["body"]["choices"][0]["finish_reason"] in ("stop", "length")
    assert "50 answers, 10 errors" in tally.line()

    again, same = run(plan(output=tmp_path / "again.jsonl"))
    assert same == rows
    assert again.completion_tokens == tally.completion_tokens


def test_an_answer_is_what_a_server_says(plan, tmp_path, batch_llm, media_root):
    messages = [{"role": "user", "content": {"text": "What?", "image": "tiny_100x60.png"}}]
    said = batch_llm.chat(messages, sampling=replace(greedy(), max_tokens=6), media_root=media_root)
    content = [image_part("tiny_100x60.png"), {"type": "text", "text": "What?"}]
    write_rows(tmp_path / "in.jsonl", [chat_row("a", content, temperature=0)])
    _, (row,) = run(plan())
    assert row["response"]["body"]["choices"][0]["message"]["content"] == said.text
    assert row["response"]["body"]["usage"]["prompt_tokens"] == said.usage.prompt_tokens
    assert row["error"] is None


def greedy():
    from tianquan.llm import GREEDY

    return GREEDY


@pytest.mark.parametrize("name", ["tiny_100x60.png", "{root}/tiny_100x60.png", "file:///tiny_100x60.png"])
def test_media_are_named_by_path(plan, tmp_path, media_root, name):
    write_rows(tmp_path / "in.jsonl", [chat_row("a", [image_part(name.format(root=media_root))])])
    _, (row,) = run(plan())
    assert row["error"] is None, row


@pytest.mark.parametrize(
    "name", ["../checkpoint/config.json", "/etc/passwd", "https://example.com/a.png", "http:a", ""]
)
def test_nothing_outside_the_media_root_is_read(plan, tmp_path, name):
    write_rows(tmp_path / "in.jsonl", [chat_row("a", [image_part(name)])])
    _, (row,) = run(plan())
    assert row["response"]["status_code"] == 400


def test_rows_without_a_seed_follow_the_jobs(plan, tmp_path):
    row = chat_row("a", "say anything", temperature=2, max_tokens=8)
    write_rows(tmp_path / "in.jsonl", [row, {**row, "custom_id": "b"}])
    _, (first, second) = run(plan())
    _, (other, _) = run(plan(output=tmp_path / "other.jsonl", seed=7))
    texts = [row["response"]["body"]["choices"] for row in (first, second, other)]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_blank_lines_are_no_rows(plan, tmp_path):
    line = json.dumps(chat_row("a", "hello"))
    (tmp_path / "in.jsonl").write_text(f"\n{line}\r\n  \n\n{line.replace('a', 'b', 1)}\n\n")
    tally, rows = run(plan())
    assert len(rows) == tally.num_answers + tally.num_errors == 2
    assert run_batch(plan(load=no_load)).num_before == 2


def test_an_empty_input_gives_an_empty_output(plan, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b"")
    assert run_batch(plan(load=no_load)).num_answers == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_gigantic_row_is_an_error_and_is_not_held(plan, tmp_path):
    with open(tmp_path / "in.jsonl", "wb") as file:
        file.write(b'{"custom_id": "' + b"x" * 3_000_000 + b'"}\n')
        file.write(json.dumps(chat_row("a", "hello")).encode() + b"\n")
        file.write(b"y" * 3000)
    _, rows = run(plan(max_body_bytes=2000))
    assert [row["error"] and row["error"]["code"] for row in rows] == ["row_too_large", None, "row_too_large"]
    assert "3000018 bytes" in rows[0]["error"]["message"]


def test_a_row_within_the_limit_is_answered_however_it_is_written_again(plan, tmp_path):
    body = {"model": "checkpoint", "prompt": [7] * 450, "max_tokens": 1}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    line = json.dumps(row, separators=(",", ":"))
    assert len(line) < 1024 < len(json.dumps(body))
    (tmp_path / "in.jsonl").write_text(line + "\n")
    _, (answered,) = run(plan(max_body_bytes=1024))
    assert answered["response"]["status_code"] == 200


@pytest.mark.parametrize("change", [{"max_media_bytes": 4096}, {"max_body_bytes": 2048}, {"media_root": Path("/tmp")}])
def test_another_limit_or_root_is_another_job(plan, tmp_path, media_root, change):
    """Its errors and answers would be others."""
    assert plan(**change).digest != plan().digest
    here, there = (replace(plan(), input=folder / "in.jsonl") for folder in (media_root, tmp_path))
    assert replace(here, config=replace(here.config, media_root=None)).digest == here.digest  # the input's own
    assert here.digest != there.digest


def test_deep_nesting_and_large_numbers_are_errors(plan, tmp_path):
    nested = '{"custom_id": "a", "body": ' + "[" * 100_000 + "]" * 100_000 + "}"
    number = '{"custom_id": "b", "body": ' + "9" * 5000 + "}"
    (tmp_path / "in.jsonl").write_text(f"{nested}\n{number}\n")
    _, rows = run(plan())
    assert [row["error"]["code"] for row in rows] == ["invalid_json", "invalid_json"]


def test_the_mark_that_some_editors_begin_a_file_with_is_no_row(plan, tmp_path):
    rows = [json.dumps(chat_row(name, "hello")).encode() for name in ("first", "second")]
    mark = b"\xef\xbb\xbf"
    (tmp_path / "in.jsonl").write_bytes(mark + rows[0] + b"\n" + mark + rows[1] + b"\n")
    _, answers = run(plan())
    assert [row["error"] and row["error"]["code"] for row in answers] == [None, "invalid_json"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"extra": 1}, "invalid_row"),
        ({"body": "text"}, "invalid_row"),
        ({"custom_id": ""}, "invalid_custom_id"),
        ({"custom_id": "x" * 513}, "invalid_custom_id"),
        ({"custom_id": "\ud800"}, "invalid_custom_id"),
        ({"url": ["/v1/chat/completions"]}, "invalid_url"),
        ({"method": None}, "invalid_method"),
        ({"body": {"messages": [], "stream": True}}, "invalid_value"),
        ({"body": {"messages": [{"role": "user", "content": "\udcff"}]}}, "invalid_json"),
        ({"body": {"messages": [{"role": "user", "content": "a"}], "temperature": float("nan")}}, "invalid_value"),
        ({"body": {"messages": [{"role": "user", "content": "a"}], "model": "another"}}, "model_not_found"),
        ({"body": {}}, "invalid_value"),
    ],
)
def test_rows_of_the_wrong_form(plan, tmp_path, change, code):
    write_rows(tmp_path / "in.jsonl", [{**chat_row("a", "hello"), **change}, chat_row("good", "hello")])
    _, (bad, good) = run(plan())
    assert bad["error"]["code"] == code, bad
    assert good["error"] is None


def test_a_long_answer_does_not_stop_the_others(plan, tmp_path):
    first = chat_row("long", "hello", max_tokens=300, ignore_eos=True)
    write_rows(tmp_path / "in.jsonl", [first, *(chat_row(f"r{n}", "hi", max_tokens=1) for n in range(200))])
    _, rows = run(plan())
    assert [row["custom_id"] for row in rows] == ["long", *(f"r{n}" for n in range(200))]


# Going on ---------------------------------------------------------------------------------------------------
@pytest.fixture
def job(plan, tmp_path):
    """A finished job: its plan, its output's bytes and rows."""
    write_job(tmp_path / "in.jsonl", 24)
    finished = plan()
    _, rows = run(finished)
    return finished, finished.output.read_bytes(), rows


def test_a_finished_job_needs_no_model(job):
    plan, data, _ = job
    tally = run_batch(replace(plan, load=no_load))
    assert tally.num_before == 24
    assert plan.output.read_bytes() == data


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.99])
def test_a_job_cut_anywhere_goes_on(job, share):
    plan, data, rows = job
    plan.output.write_bytes(data[: int(share * len(data))])
    tally, resumed = run(plan)
    assert resumed == rows
    assert tally.num_before == data[: int(share * len(data))].count(b"\n")


def test_an_output_of_another_job_is_not_touched(job, tmp_path):
    plan, data, _ = job
    for other in (replace(plan, seed=5), replace(plan, config=replace(plan.config, precision="int8"))):
        with pytest.raises(TianquanError, match="another job, or of other options"):
            run_batch(other)
    lines = plan.input.read_bytes().splitlines(keepends=True)
    plan.input.write_bytes(b"".join([*lines[:3], lines[4], lines[3], *lines[5:]]))
    with pytest.raises(TianquanError, match=r"in place of the input's row 4"):
        run_batch(plan)
    plan.input.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(TianquanError, match="more rows than the input"):
        run_batch(plan)
    assert plan.output.read_bytes() == data

    for foreign in (b"notes of mine", b"notes of mine\n", data[:40] + b"x"):
        plan.output.write_bytes(foreign)
        with pytest.raises(TianquanError, match="another output"):
            run_batch(plan)
        assert plan.output.read_bytes() == foreign


def test_more_rows_may_be_added_to_the_input(job):
    plan, data, _ = job
    with open(plan.input, "a") as file:
        file.write(json.dumps(chat_row("one more", "hello")) + "\n")
    tally, rows = run(plan)
    assert (tally.num_before, tally.num_answers) == (24, 1)
    assert plan.output.read_bytes().startswith(data)
    assert rows[-1]["custom_id"] == "one more"


@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_the_end_of_a_line_is_no_part_of_its_row(job, end):
    """A last row without a line feed gets one when another is added."""
    plan, _, _ = job
    lines = [*plan.input.read_bytes().rstrip(b"\n").split(b"\n"), json.dumps(chat_row("one more", "hello")).encode()]
    plan.input.write_bytes((end or b"\n").join(lines) + end)
    tally, _ = run(plan)
    assert (tally.num_before, tally.num_answers) == (24, 1)


def test_ids_used_before_a_kill_are_still_known(plan, tmp_path):
    write_rows(tmp_path / "in.jsonl", [chat_row("a", "hello"), chat_row("b", "hello")])
    run(plan())
    with open(tmp_path / "in.jsonl", "a") as file:
        file.write(json.dumps(chat_row("a", "again")) + "\n")
    _, rows = run(plan())
    assert rows[2]["error"]["code"] == "duplicate_custom_id"


def test_two_runs_on_one_output(plan, tmp_path, batch_llm):
    write_job(tmp_path / "in.jsonl", 20)
    begun, go_on = threading.Event(), threading.Event()

    def load(_):
        begun.set()
        assert go_on.wait(20)
        return batch_llm

    first = threading.Thread(target=run_batch, args=(plan(load=load),))
    first.start()
    assert begun.wait(20)
    with pytest.raises(TianquanError, match="another run is writing it"):
        run_batch(plan())
    go_on.set()
    first.join(20)
    assert len(answers(tmp_path / "out.jsonl")) == 20


def test_a_full_disk_leaves_what_was_written(plan, tmp_path, monkeypatch):
    write_job(tmp_path / "in.jsonl", 20)
    write, room = os.write, [2000]

    def write_to_small_disk(handle, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = bytes(data)[: room[0]]
        room[0] -= len(data)
        return write(handle, data)

    monkeypatch.setattr(output_file.os, "write", write_to_small_disk)
    with pytest.raises(TianquanError, match=r"No space left on device.* goes on there"):
        run_batch(plan())
    assert (tmp_path / "out.jsonl").stat().st_size == 2000
    monkeypatch.undo()
    tally, rows = run(plan())
    assert tally.num_before > 0
    assert len(rows) == 20


def test_a_failure_before_the_first_row_leaves_no_file(plan, tmp_path):
    write_job(tmp_path / "in.jsonl", 20)

    def load(_):
        raise TianquanError("no such model")

    with pytest.raises(TianquanError, match="no such model"):
        run_batch(plan(load=load))
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_are_none(plan, tmp_path):
    write_job(tmp_path / "in.jsonl", 20)
    data = (tmp_path / "in.jsonl").read_bytes()
    with pytest.raises(TianquanError, match="is the input too"):
        run_batch(plan(output=tmp_path / "in.jsonl"))
    os.link(tmp_path / "in.jsonl", tmp_path / "link.jsonl")
    with pytest.raises(TianquanError, match="is the input too"):
        run_batch(plan(output=tmp_path / "link.jsonl"))
    assert (tmp_path / "in.jsonl").read_bytes() == data
    os.mkfifo(tmp_path / "pipe")
    for other in ({"input": tmp_path / "pipe"}, {"output": tmp_path / "pipe"}, {"input": tmp_path}):
        with pytest.raises(TianquanError, match="not a regular file"):
            run_batch(plan(**other))
    for other in ({"input": tmp_path / "none"}, {"output": tmp_path}, {"output": tmp_path / "none" / "out"}):
        with pytest.raises(TianquanError, match=r"cannot be (read|written)"):
            run_batch(plan(**other))


def test_a_failing_engine_is_tried_again(plan, tmp_path, batch_llm, monkeypatch):
    write_rows(tmp_path / "in.jsonl", [chat_row(f"r{n}", "hello") for n in range(6)])
    engine = batch_llm.driver.engine
    step, failures = type(engine).step, iter([True])

    def step_that_fails_once(self):
        if next(failures, False):
            raise RuntimeError("broken")
        return step(self)

    monkeypatch.setattr(type(engine), "step", step_that_fails_once)
    tally, _ = run(plan())
    assert (tally.num_answers, tally.num_errors) == (6, 0)
