"""The command: a line for each check, code 1 when one fails."""

from __future__ import annotations

import json
import re

import pytest

import tianquan
from command_line import BACKEND, assert_refused, run
from shards import rewrite_shard
from tianquan.errors import ParameterError
from tianquan.verification.run import Verification, VerificationPlan


def outcomes(folder, **settings):
    plan = VerificationPlan(folder=folder, num_layers=1, whole_model=False, **settings)
    return list(Verification(plan, lambda *_: None, lambda _: None).outcomes())


def test_command_with_a_trace(checkpoint_folder, conformance, media_root, tmp_path):
    case = json.loads((conformance / "cases" / "image_audio_text.json").read_text())
    messages, trace = tmp_path / "messages.json", tmp_path / "trace.safetensors"
    messages.write_text(json.dumps(case["messages"]))
    talk = ["--messages", messages, "--media-root", media_root]
    assert run("trace", checkpoint_folder, *talk, "--output", trace, *BACKEND).returncode == 0
    result = run("verify", checkpoint_folder, "--layers", 1, "--reference-trace", trace, *talk)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1].endswith("0 FAILED, 0 skipped")
    for words in ("120 of 120 tensors", "native and reference", "whole model, audio", "trace, audio_features.0"):
        assert words in result.stdout

    messages.write_text(json.dumps([{"role": "user", "content": "something else"}]))
    result = run("verify", checkpoint_folder, "--layers", 1, "--no-whole-model", "--reference-trace", trace, *talk)
    assert result.returncode == 1
    assert "FAILED   trace, prompt_token_ids" in result.stdout


def test_a_checkpoint_with_an_extra_tensor(copied_folder):
    rewrite_shard(copied_folder, lambda tensors: tensors.update(more=next(iter(tensors.values()))))
    found = outcomes(copied_folder)
    assert [outcome.status for outcome in found] == ["FAILED", "FAILED", "skipped"]
    assert "not used: more" in found[0].detail


def test_a_damaged_weight_fails_and_the_rest_goes_on(copied_folder):
    def change(tensors):
        name = next(name for name in sorted(tensors) if name.startswith("vision.resampler.proj"))
        tensors[name][1].flat[0] = 0x7FC0

    rewrite_shard(copied_folder, change)
    by_name = {outcome.name: outcome for outcome in outcomes(copied_folder)}
    assert by_name["tensors"].status == "ok"
    for name in ("first layers", "short answers", "weights"):
        assert by_name[name].status == "FAILED"
        assert "NaN" in by_name[name].detail


def test_low_bit_folders(checkpoint_folder, tmp_path):
    tianquan.load(checkpoint_folder, precision="int8").save_low_bit(tmp_path / "int8")
    found = outcomes(tmp_path / "int8")
    assert {outcome.status for outcome in found} == {"ok", "skipped"}
    assert sum("native and reference" in outcome.name for outcome in found) == 4
    (mismatch, rest) = outcomes(tmp_path / "int8", precision="int4")[1:]
    assert (mismatch.status, rest.status) == ("FAILED", "skipped")


def test_not_enough_memory_is_a_line(checkpoint_folder, monkeypatch):
    def explode(*_):
        raise MemoryError

    monkeypatch.setattr("tianquan.verification.towers.run_towers", explode)
    by_name = {outcome.name: outcome for outcome in outcomes(checkpoint_folder)}
    assert "not enough memory" in by_name["first layers"].detail
    assert by_name["answer, text"].status == "ok"


def test_a_backend_that_cannot_be_made_is_a_failed_check(checkpoint_folder):
    result = run("verify", checkpoint_folder, "--threads", 0)
    assert result.returncode == 1, result
    assert "threads must be" in result.stdout
    assert re.search(r"\d+ ok, \d+ FAILED", result.stdout)


def test_refused(checkpoint_folder, tmp_path):
    trace = tmp_path / "trace.safetensors"
    assert_refused(run("verify", tmp_path / "none"), "no such folder")
    assert_refused(run("verify", checkpoint_folder, "--reference-trace", trace, "--messages", "-"), "trace.safetensors")
    assert_refused(run("verify", checkpoint_folder, "--reference-trace", trace), "--messages")
    assert_refused(run("verify", checkpoint_folder, "--messages", "-"), "--reference-trace")
    with pytest.raises(ParameterError, match="int3"):
        outcomes(checkpoint_folder, precision="int3")
    empty = run("verify", tmp_path)
    assert empty.returncode == 1
    assert "config.json" in empty.stdout
