"""Low-bit folders fitted to records: nearer to the original on them, and loaded like any other folder."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import tianquan
from command_line import assert_refused, run
from tianquan.backends.kv_cache import SequenceBatch
from tianquan.backends.native import NativeOps
from tianquan.backends.reference import ReferenceOps
from tianquan.calibration.calibrated_weights import plan_passes
from tianquan.calibration.observation import SecondMoments, WatchedWeights, product_groups, watching
from tianquan.calibration.save import Calibration
from tianquan.checkpoint import open_checkpoint
from tianquan.errors import CheckpointError, ParameterError
from tianquan.evaluation.run import RecordSet
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import find_recipe
from tianquan.training.records import parse_record

QUESTIONS = (
    {"text": "What is on the picture?", "image": "tiny_100x60.png"},
    {"text": "What is said?", "audio": "speech_1s_16k.wav"},
    {"text": "A question in words alone, somewhat longer than the others are."},
)
ANSWERS = tuple(
    f"Answer {n} of some words, long enough to weigh something: {' '.join(str(n * m * m) for m in range(3, 40))}."
    for n in range(6)
)


@pytest.fixture(scope="module")
def records():
    """A record of each kind, six times over: more tokens than any matrix has in channels."""
    pairs = [(question, answer) for answer in ANSWERS for question in QUESTIONS]
    lines = [
        {"conversations": [turn("user", question), turn("assistant", {"text": answer})]} for question, answer in pairs
    ]
    return [json.dumps(line) for line in lines]


def turn(role, content):
    return {"role": role, "content": content}


def parsed(lines):
    return tuple(parse_record(line, f"line {n}") for n, line in enumerate(lines, 1))


@pytest.fixture(scope="module")
def calibrated(checkpoint_folder, media_root, records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "folder"
    calibration = Calibration(record_sets=[RecordSet(parsed(records), media_root)])
    assert calibration.save(open_checkpoint(checkpoint_folder), find_recipe("int4"), folder) == []
    return folder


def distance(folder, exact, messages, media_root, **options):
    logits = tianquan.load(folder, **options).trace(messages, media_root=media_root).logits
    return np.linalg.norm(logits - exact) / np.linalg.norm(exact)


def test_it_is_nearer_to_the_original(calibrated, checkpoint_folder, reference_llm, media_root):
    sums = np.zeros(2)
    for question in QUESTIONS:
        messages = [turn("user", question), turn("assistant", {"text": ANSWERS[0]}), turn("user", {"text": "And?"})]
        exact = reference_llm.trace(messages, media_root=media_root).logits
        sums[0] += distance(calibrated, exact, messages, media_root)
        sums[1] += distance(checkpoint_folder, exact, messages, media_root, precision="int4")
    assert sums[0] < 0.93 * sums[1], sums


def test_less_memory_means_more_passes_and_the_same_weights(
    calibrated, checkpoint_folder, media_root, records, tmp_path
):
    stages = []
    calibration = Calibration(
        record_sets=[RecordSet(parsed(records), media_root)],
        memory=24 << 20,
        on_stage=lambda what, total: stages.append(what),
    )
    calibration.save(open_checkpoint(checkpoint_folder), find_recipe("int4"), tmp_path / "again")
    passes = [stage for stage in stages if "pass" in stage]
    last = len(passes) // 2
    assert last >= 2
    assert passes[-2:] == [f"records, pass {last} of {last}", f"weights, pass {last} of {last}"]
    for path in calibrated.glob("*.safetensors"):
        other = (tmp_path / "again" / path.name).read_bytes()
        assert np.mean(np.frombuffer(path.read_bytes(), np.uint8) != np.frombuffer(other, np.uint8)) < 0.01
    assert json.loads((calibrated / "quantization.json").read_text())["calibration"] == {
        "records": len(records),
        "rounded_to_nearest": [],
    }


def test_parts_fit_in_the_memory_and_miss_nothing(checkpoint_folder):
    groups = product_groups(open_checkpoint(checkpoint_folder).config)
    largest = max(group.nbytes for group in groups)
    for memory in (largest, 2 * largest, 1 << 40):
        parts = plan_passes(groups, memory)
        assert [group for part in parts for group in part] == groups
        assert all(sum(group.nbytes for group in part) <= memory for part in parts)
    with pytest.raises(ParameterError, match=r"no room for what enters .*; expected .* MB at least"):
        plan_passes(groups, largest - 1)


def test_what_is_added_up_is_what_enters_the_products(checkpoint_folder, reference_llm, media_root, monkeypatch):
    """A convolution, a matrix of a tower and a group, beside what the reference backend multiplies."""
    names = ("audio.conv2", "vision.layers.0.mlp.down", "language_model.layers.1.attention.query", "resampler.input")
    checkpoint = open_checkpoint(checkpoint_folder)
    groups = [group for group in product_groups(checkpoint.config) if group.names[0] in names]
    moments, entered = SecondMoments(), {}

    class Entering(ReferenceOps):
        def linear(self, x, linear, activation=None, residual=None):
            entered.setdefault(id(linear), []).append(x)
            return super().linear(x, linear, activation, residual)

        def linear_group(self, x, group):
            entered.setdefault(id(group), []).append(x)
            return super().linear_group(x, group)

    ops = Entering()
    source = WatchedWeights(checkpoint.weights(find_recipe("float32"), ops))
    handles = {}
    for method in ("linear", "linear_group"):
        asked = getattr(source, method)

        def remember(name, *rest, asked=asked, **named):
            watched = asked(name, *rest, **named)
            handles[watched.names] = watched.handle
            return watched

        monkeypatch.setattr(source, method, remember)
    moments.start(groups)
    model = OmniModel(checkpoint.config, source, watching(ops, moments))
    for question in QUESTIONS:
        prompt = checkpoint.processor([turn("user", question)], None, media_root)
        images = model.encode_images(prompt.images) if prompt.images else None
        hidden = model.embed(prompt, images, model.encode_audios(prompt.audios) if prompt.audios else [])
        cache = model.language_model.make_kv_cache(len(hidden))
        model.forward(hidden, cache, SequenceBatch.alone(len(hidden), 0, cache))
    for group in groups:
        x = np.concatenate(entered[id(handles[group.names])])
        assert moments.num_rows(group) == len(x) > 0
        np.testing.assert_allclose(moments.sum(group), x.T @ x, rtol=1e-3, atol=1e-3 * np.abs(x.T @ x).max())


def test_a_tower_that_no_record_uses_is_named_and_rounded_to_nearest(checkpoint_folder, media_root, records, tmp_path):
    checkpoint = open_checkpoint(checkpoint_folder)
    text = [record for record in records if "words alone" in record]
    calibration = Calibration(record_sets=[RecordSet(parsed(text), media_root)])
    nearest = calibration.save(checkpoint, find_recipe("int4"), tmp_path / "text")
    assert {name.partition(".")[0] for name in nearest} == {"vision", "resampler", "audio"}
    checkpoint.save_low_bit(find_recipe("int4"), tmp_path / "nearest", NativeOps())
    for component in ("vision", "resampler", "audio", "language_model"):
        name = f"{component}.safetensors"
        same = (tmp_path / "text" / name).read_bytes() == (tmp_path / "nearest" / name).read_bytes()
        assert same == (component != "language_model")


def test_with_fewer_tokens_than_channels_nothing_is_fitted(checkpoint_folder, media_root, tmp_path):
    line = json.dumps({"conversations": [turn("user", {"text": "Yes?"}), turn("assistant", {"text": "No."})]})
    calibration = Calibration(record_sets=[RecordSet(parsed([line]), media_root)])
    checkpoint = open_checkpoint(checkpoint_folder)
    nearest = calibration.save(checkpoint, find_recipe("int4"), tmp_path / "few")
    assert set(nearest) == {name for group in product_groups(checkpoint.config) for name in group.names}
    told = run("info", tmp_path / "few").stdout
    assert f"calibrated on 1 records, but {len(nearest)} matrices" in " ".join(told.split())


def test_what_cannot_be_calibrated(checkpoint_folder, calibrated, media_root, records, tmp_path):
    calibration = Calibration(record_sets=[RecordSet(parsed(records), media_root)])
    checkpoint = open_checkpoint(checkpoint_folder)
    with pytest.raises(ParameterError, match="float16 rounds nothing"):
        calibration.save(checkpoint, find_recipe("float16"), tmp_path / "out")
    with pytest.raises(ParameterError, match="have none"):
        Calibration(record_sets=[RecordSet((), None)]).save(checkpoint, find_recipe("int4"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="low-bit folder already"):
        calibration.save(open_checkpoint(calibrated), find_recipe("int4"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command(checkpoint_folder, media_root, records, tmp_path):
    shutil.copytree(media_root, tmp_path / "media")
    data = tmp_path / "media" / "records.jsonl"
    data.write_text("\n".join(records) + "\n")
    output = tmp_path / "out"
    options = ["--calibrate", data, "--limit", 9, "--calibration-memory", "64M"]
    result = run("quantize", checkpoint_folder, output, *options)
    assert result.returncode == 0, result
    assert "int4" in result.stdout
    assert "rounded to nearest" in result.stderr  # three pictures and recordings are few for some matrices
    assert "recipe int4 (calibrated on 9 records" in run("info", output).stdout
    assert_refused(run("quantize", checkpoint_folder, tmp_path / "two", *options[:-1], "1K"), "no room", "MB at least")
    assert_refused(run("quantize", checkpoint_folder, tmp_path / "two", "--limit", 9), "--limit", "--calibrate")
    data.write_text(records[0].replace("tiny_100x60.png", "missing.png"))
    message = assert_refused(run("quantize", checkpoint_folder, tmp_path / "two", "--calibrate", data), "missing.png")
    assert "records.jsonl:1" in message
    assert not (tmp_path / "two").exists()
