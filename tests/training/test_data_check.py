from __future__ import annotations

import json
import shutil

import pytest

from command_line import assert_refused, run
from drawn_videos import encode, moving
from tianquan.checkpoint import open_checkpoint
from tianquan.training.data_check import DataCheck, Prospect, histogram
from tianquan.training.records import RecordError, parse_record, read_lines

ANSWER = {"role": "assistant", "content": "A circle."}


def record(*contents, **extra):
    """A record whose user turns have these contents, each answered."""
    turns = [turn for content in contents for turn in ({"role": "user", "content": content}, ANSWER)]
    return json.dumps({"conversations": turns, **extra})


GOOD = [
    record({"text": "What is it?", "image": "shapes_640x480.png"}, "And now?", task="shape", language="en"),
    record({"text": "几个？", "audio": "speech_1s_16k.wav"}, task="count", language="zh"),
    json.dumps({"messages": [{"role": "user", "content": "Hi"}, ANSWER], "task": "shape"}),
]


@pytest.fixture
def folder(tmp_path, media_root):
    for name in ("shapes_640x480.png", "speech_1s_16k.wav"):
        shutil.copy(media_root / name, tmp_path / name)
    return tmp_path


def check(folder, lines, prospect=None):
    path = folder / "records.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    checking = DataCheck(prospect, folder)
    assert list(checking.run(path))[-1] == path.stat().st_size
    return checking.report


def test_good_records_are_counted(folder, checkpoint_folder):
    prospect = Prospect(open_checkpoint(checkpoint_folder).processor, 4096)
    report = check(folder, [*GOOD, "  "], prospect).to_dict()
    assert report["ok"]
    assert (report["records"], report["turns"], report["images"], report["audios"]) == (3, 8, 1, 1)
    assert report["audio_seconds"] == pytest.approx(1.0, abs=0.1)
    assert report["tasks"] == {"shape": 2, "count": 1}
    assert report["languages"] == {"": 1, "en": 1, "zh": 1}
    assert report["tokens"]["min"] < 64 < report["tokens"]["max"]
    assert sum(bin["records"] for bin in report["tokens"]["histogram"]) == 3


@pytest.mark.parametrize("has_model", [True, False])
def test_videos_are_decoded_and_counted(folder, checkpoint_folder, has_model):
    (folder / "film.mp4").write_bytes(encode(moving(12)))
    (folder / "same.mp4").write_bytes((folder / "film.mp4").read_bytes())
    (folder / "cut.mp4").write_bytes(encode(moving(12))[:-600])
    (folder / "sound.mp4").write_bytes((folder / "speech_1s_16k.wav").read_bytes())
    names = ("film.mp4", "same.mp4", "cut.mp4", "sound.mp4", "missing.mp4")
    lines = [record({"text": "What moves?", "video": name}) for name in names]
    prospect = Prospect(open_checkpoint(checkpoint_folder).processor, 4096) if has_model else None
    report = check(folder, lines, prospect).to_dict()
    assert (report["records"], report["videos"], report["video_frames"]) == (1, 1, 5)
    messages = [problem["message"] for problem in report["problems"]]
    assert [problem["source"] for problem in report["problems"]] == [f"records.jsonl:{n}" for n in (2, 3, 4, 5)]
    assert messages[0].startswith("repeats records.jsonl:1")
    assert messages[1].startswith("cut.mp4: the video is damaged")
    assert "sound.mp4: the file is WAV; expected a video" in messages[2]
    assert messages[3] == "video 1: missing.mp4: no such file"
    if has_model:
        assert report["tokens"]["max"] > 5 * 64


def test_every_bad_record_is_named_and_the_rest_counted(folder):
    (folder / "cut.png").write_bytes((folder / "shapes_640x480.png").read_bytes()[:200])
    (folder / "noise.wav").write_bytes(b"nothing of the kind")
    lines = [
        "{",
        GOOD[0],
        record({"text": "x", "image": ["none.png", "cut.png"], "audio": "noise.wav"}),
        json.dumps({"conversations": [ANSWER]}),
        b'{"conversations": "\xff"}',
        record({"image": "https://example.org/a.png"}),
        record("x", task=3),
        record({"image": "."}),
        record({"image": "a\0b"}),
        record("\ud83d"),
        record("x", task="\udc00"),
        '{"conversations": ' + "9" * 5000 + "}",
        GOOD[1],
    ]
    report = check(folder, lines)
    named = [(problem.source, problem.message) for problem in report.problems]
    assert [source for source, _ in named] == [f"records.jsonl:{n}" for n in (1, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)]
    words = [
        "JSON",
        "none.png",
        "cut.png",
        "noise.wav",
        "alternate",
        "UTF-8",
        "not fetched",
        "task",
        ".",
        "a",
        "half",
        "half",
        "JSON",
    ]
    for (source, message), word in zip(named, words, strict=True):
        assert word in message, source
        assert source not in message
    assert (report.num_records, report.num_bad) == (2, 11)
    assert not report.is_good


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\xef\xbb\xbf" + GOOD[0].encode(), "byte-order mark"),
        (b'{"x": "ab\xff"}', "not UTF-8 text at byte 9"),
        (b'{"messages": [], "messages": []}', "'messages' occurs twice"),
        (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "'content' occurs twice"),
        ("\u00a0".encode(), "JSON"),
    ],
)
def test_check_and_training_say_the_same_of_a_line(folder, line, words):
    """Lines end at \\n alone, and are counted alike."""
    path = folder / "records.jsonl"
    path.write_bytes(GOOD[0].encode().replace(b"}", b"\r}") + b"\r\n\n" + line + b"\n" + GOOD[1].encode())
    found = DataCheck(None, folder)
    list(found.run(path))
    (problem,) = found.report.problems
    assert problem.source == "records.jsonl:3"
    assert words in problem.message
    lines = list(read_lines(path))
    parse_record(*lines[0])
    with pytest.raises(RecordError) as error:
        parse_record(*lines[1])
    assert str(error.value) == str(problem)


def test_characters_may_be_written_as_two_escapes(folder):
    assert check(folder, [record("\U0001f600", task="\U0001f600")]).is_good


def test_repeats_are_found_by_the_bytes_of_media(folder):
    shutil.copy(folder / "shapes_640x480.png", folder / "copy.png")
    other = {"text": "What is it?", "image": "copy.png"}
    report = check(folder, [GOOD[0], record({**other, "image": ["copy.png"]}, "And now?"), record(other), GOOD[2]])
    assert [str(problem) for problem in report.problems] == [
        "records.jsonl:2: repeats records.jsonl:1: the same conversation with the same media"
    ]


def test_lengths_against_the_window(folder, checkpoint_folder):
    prospect = Prospect(open_checkpoint(checkpoint_folder).processor, 60)
    report = check(folder, GOOD, prospect)
    assert [problem.source for problem in report.problems] == ["records.jsonl:1", "records.jsonl:2"]
    assert "window of 60" in report.problems[0].message
    assert len(report.num_tokens) == 1


def test_files_without_records(folder):
    report = check(folder, ["", " "])
    assert [str(problem) for problem in report.problems] == ["records.jsonl: has no records"]
    assert not report.is_good
    assert (
        check(folder, [b"\xef\xbb\xbf" + GOOD[2].encode()]).problems[0].message.startswith("begins with a byte-order")
    )
    with pytest.raises(RecordError, match="cannot be read"):
        list(DataCheck().run(folder / "none.jsonl"))


def test_histogram():
    assert histogram([]) == []
    assert histogram([0, 31, 32, 63, 64]) == [(0, 32, 2), (32, 64, 2), (64, 128, 1)]


def test_command(folder, checkpoint_folder):
    path = folder / "records.jsonl"
    path.write_text("\n".join(GOOD))
    result = run("data", "check", path, "--model", checkpoint_folder, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["records"] == 3
    path.write_text("\n".join([*GOOD, GOOD[2]]))
    result = run("data", "check", path)
    assert result.returncode == 1
    assert "records.jsonl:4: repeats records.jsonl:3" in result.stdout
    assert "bad records" in result.stdout
    assert "name the model with --model" in result.stdout
    path.write_text("{")
    assert "--model" not in run("data", "check", path, "--model", checkpoint_folder).stdout
    assert_refused(run("data", "check", folder / "none.jsonl"), "none.jsonl")
    assert_refused(run("data", "check", path, "--model", folder), "config.json")
