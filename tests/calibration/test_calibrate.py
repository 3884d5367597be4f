"""Low-bit folders fitted to records: nearer to the original on them, and loaded like any other folder."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import tianquan
from command_line import assert_refused, run
from tianquan.backends.native import NativeOps
from tianquan.calibration.calibrated_weights import plan_passes
from tianquan.calibration.save import save_calibrated
from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.errors import CheckpointError, ParameterError
from tianquan.evaluation.run import RecordSet
from tianquan.quantization.format import QuantFormat
from tianquan.quantization.recipes import find_recipe
from tianquan.training.records import parse_record

QUESTIONS = (
    {"text": "What is on the picture?", "image": "tiny_100x60.png"},
    {"text": "What is said?", "audio": "speech_1s_16k.wav"},
    {"text": "A question in words alone, somewhat longer than the others are."},
)
ANSWER = "An answer of some words, long enough to weigh something: one two three four five six seven."


@pytest.fixture(scope="module")
def records():
    lines = [{"conversations": [turn("user", question), turn("assistant", {"text": ANSWER})]} for question in QUESTIONS]
    return [json.dumps(line) for line in lines]


def turn(role, content):
    return {"role": role, "content": content}


def parsed(lines):
    return tuple(parse_record(line, f"line {n}") for n, line in enumerate(lines, 1))


@pytest.fixture(scope="module")
def calibrated(checkpoint_folder, media_root, records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "folder"
    sets = [RecordSet(parsed(records), media_root)]
    unseen = save_calibrated(open_checkpoint(checkpoint_folder), find_recipe("int4"), folder, sets)
    assert unseen == []
    return folder


def distance(folder, exact, messages, media_root, **options):
    logits = tianquan.load(folder, **options).trace(messages, media_root=media_root).logits
    return np.linalg.norm(logits - exact) / np.linalg.norm(exact)


def test_it_is_nearer_to_the_original(calibrated, checkpoint_folder, reference_llm, media_root):
    sums = np.zeros(2)
    for question in QUESTIONS:
        messages = [turn("user", question), turn("assistant", {"text": ANSWER}), turn("user", {"text": "And?"})]
        exact = reference_llm.trace(messages, media_root=media_root).logits
        sums[0] += distance(calibrated, exact, messages, media_root)
        sums[1] += distance(checkpoint_folder, exact, messages, media_root, precision="int4")
    assert sums[0] < 0.93 * sums[1], sums


def test_less_memory_means_more_passes_and_the_same_weights(
    calibrated, checkpoint_folder, media_root, records, tmp_path
):
    stages = []
    save_calibrated(
        open_checkpoint(checkpoint_folder),
        find_recipe("int4"),
        tmp_path / "again",
        [RecordSet(parsed(records), media_root)],
        memory=2 << 20,
        on_stage=lambda what, total: stages.append(what),
    )
    passes = [stage for stage in stages if stage.startswith("records")]
    assert len(passes) > 3
    assert passes[-1] == f"records, pass {len(passes)} of {len(passes)}"
    for path in calibrated.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_parts_fit_in_the_memory_and_miss_nothing(checkpoint_folder):
    weights, recipe = needed_weights(open_checkpoint(checkpoint_folder).config), find_recipe("int4")
    low_bit = [w.name for w in weights if w.is_matrix and isinstance(w.format(recipe), QuantFormat)]
    sizes = {weight.name: 4 * weight.shape[1] ** 2 for weight in weights if weight.is_matrix}
    for memory in (1, 300_000, 2 << 20, 1 << 40):
        parts = plan_passes(weights, recipe, memory)
        assert [name for part in parts for name in part] == low_bit
        assert all(len(part) == 1 or sum(sizes[name] for name in part) <= memory for part in parts)


def test_a_tower_that_no_record_uses_is_named_and_rounded_to_nearest(checkpoint_folder, media_root, records, tmp_path):
    checkpoint = open_checkpoint(checkpoint_folder)
    sets = [RecordSet(parsed(records)[2:], media_root)]
    unseen = save_calibrated(checkpoint, find_recipe("int4"), tmp_path / "text", sets)
    assert {name.partition(".")[0] for name in unseen} == {"vision", "resampler", "audio"}
    checkpoint.save_low_bit(find_recipe("int4"), tmp_path / "nearest", NativeOps())
    for component in ("vision", "resampler", "audio", "language_model"):
        name = f"{component}.safetensors"
        same = (tmp_path / "text" / name).read_bytes() == (tmp_path / "nearest" / name).read_bytes()
        assert same == (component != "language_model")


def test_what_cannot_be_calibrated(checkpoint_folder, calibrated, media_root, records, tmp_path):
    sets = [RecordSet(parsed(records), media_root)]
    checkpoint = open_checkpoint(checkpoint_folder)
    with pytest.raises(ParameterError, match="float16 rounds nothing"):
        save_calibrated(checkpoint, find_recipe("float16"), tmp_path / "out", sets)
    with pytest.raises(ParameterError, match="have none"):
        save_calibrated(checkpoint, find_recipe("int4"), tmp_path / "out", [RecordSet((), None)])
    with pytest.raises(CheckpointError, match="low-bit folder already"):
        save_calibrated(open_checkpoint(calibrated), find_recipe("int4"), tmp_path / "out", sets)
    assert not (tmp_path / "out").exists()


def test_command(checkpoint_folder, media_root, records, tmp_path):
    shutil.copytree(media_root, tmp_path / "media")
    data = tmp_path / "media" / "records.jsonl"
    data.write_text("\n".join(records) + "\n")
    output = tmp_path / "out"
    result = run(
        "quantize", checkpoint_folder, output, "--calibrate", data, "--limit", 2, "--calibration-memory", "64M"
    )
    assert result.returncode == 0, result
    assert "int4" in result.stdout
    assert result.stderr == ""
    assert "int4" in run("info", output).stdout
    data.write_text(records[0].replace("tiny_100x60.png", "missing.png"))
    message = assert_refused(run("quantize", checkpoint_folder, tmp_path / "two", "--calibrate", data), "missing.png")
    assert "records.jsonl:1" in message
    assert not (tmp_path / "two").exists()
