"""The command, and what is left when it is stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from command_line import assert_refused, run
from tianquan.checkpoint.safetensors_file import write_safetensors
from tianquan.cli.evaluate import evaluate
from tianquan.errors import ParameterError
from tianquan.evaluation import report
from tianquan.evaluation.run import Evaluation, EvaluationPlan, RecordSet, parse_reference
from tianquan.request import MediaPolicy, VideoPolicy
from tianquan.training.records import read_records


@pytest.fixture
def data(tmp_path, media_root):
    shutil.copy(media_root / "tiny_100x60.png", tmp_path / "a.png")
    talks = [
        ({"text": "What?", "image": "a.png"}, "shape", "en"),
        ("几个？", "count", "zh"),
        ("How many?", "count", "en"),
    ]
    lines = [
        json.dumps(
            {
                "conversations": [{"role": "user", "content": content}, {"role": "assistant", "content": "red | two"}],
                "task": task,
                "language": language,
            }
        )
        for content, task, language in talks
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines))
    return path


def plan(folder, data, **changes):
    settings = {"precisions": ("int8",), "max_tokens": 3, **changes}
    return EvaluationPlan(
        model=str(folder), record_sets=(RecordSet(tuple(read_records(data)), data.parent),), **settings
    )


def test_command(checkpoint_folder, data, tmp_path):
    result = run(
        "evaluate", checkpoint_folder, "--data", data, "--precision", "int4", "--precision", "float32",
        "--reference", f"{checkpoint_folder}@float32", "--max-tokens", 3,
        "--json", tmp_path / "report.json", "--markdown", tmp_path / "report.md",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["complete"]
    int4, float32 = found["results"]
    assert (int4["precision"], float32["precision"]) == ("int4", "float32")
    assert int4["bytes_per_weight"] < 1.3 < 4 <= float32["bytes_per_weight"]
    assert int4["resident_bytes"] > 10e6
    assert set(int4["tasks"]) == {"shape", "count"}
    assert set(int4["tasks"]["count"]["languages"]) == {"en", "zh"}
    assert set(int4["sensitivity"]) == {"language_model", "vision", "resampler"}
    assert float32["divergence"]["all"]["kl"] == pytest.approx(0, abs=1e-9)
    assert int4["divergence"]["image"]["kl"] > 0
    assert [answer["source"] for answer in int4["answers"]] == [f"records.jsonl:{n}" for n in (1, 2, 3)]
    for text in (result.stdout, (tmp_path / "report.md").read_text()):
        for word in ("bytes/weight", "count zh", "image", "language model", "0.00000"):
            assert word in text


def test_without_a_reference(random_folder, data):
    evaluation = Evaluation(plan(random_folder, data), lambda *_: None, lambda _: None)
    evaluation.run()
    found = report.to_dict(evaluation, ["records.jsonl"])
    assert found["results"][0]["score"]["records"] == 3
    assert found["results"][0]["divergence"] == {}
    assert [table.title for table in report.tables(found)] == [
        "Quality beside size",
        "Right by task",
        "Right by language",
    ]


def test_what_was_finished_is_reported_when_interrupted(checkpoint_folder, data):
    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    evaluation = Evaluation(plan(checkpoint_folder, data), lambda *_: None, stop)
    with pytest.raises(KeyboardInterrupt):
        evaluation.run()
    found = report.to_dict(evaluation, ["records.jsonl"])
    assert not found["complete"]
    assert found["results"][0]["score"]["records"] == 2
    assert "INTERRUPTED" in report.to_markdown(found)


@pytest.mark.parametrize("end", [SystemExit(143), MemoryError(), OSError(5, "Input/output error")])
def test_what_was_finished_is_written_whatever_ends_it(checkpoint_folder, data, tmp_path, monkeypatch, end):
    """SIGTERM comes as SystemExit."""
    answers = Evaluation._answers

    def ended(self, llm):
        yield next(answers(self, llm))
        raise end

    monkeypatch.setattr(Evaluation, "_answers", ended)
    with pytest.raises(type(end)):
        evaluate(str(checkpoint_folder), [data], json_file=tmp_path / "found.json", max_tokens=3)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert not found["complete"]
    assert found["results"][0]["score"]["records"] == 1


def test_the_files_are_written_though_the_terminal_is_gone(checkpoint_folder, data, tmp_path, monkeypatch):
    def gone(found):
        raise BrokenPipeError

    monkeypatch.setattr(report, "print_tables", gone)
    files = {"json_file": tmp_path / "found.json", "markdown": tmp_path / "found.md"}
    with pytest.raises(BrokenPipeError):
        evaluate(str(checkpoint_folder), [data], **files, max_tokens=3)
    assert all(path.stat().st_size > 0 for path in files.values())


def test_a_bad_record_ends_it_after_those_before_it(checkpoint_folder, data, tmp_path):
    lines = data.read_text().splitlines()
    data.write_text("\n".join([lines[1], lines[2], lines[0].replace("a.png", "b.png"), lines[1]]))
    result = run("evaluate", checkpoint_folder, "--data", data, "--json", tmp_path / "found.json", "--max-tokens", 3)
    assert result.returncode == 2
    assert "records.jsonl:3" in result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [answer["source"] for answer in found["results"][0]["answers"]] == ["records.jsonl:1", "records.jsonl:2"]


def test_lines_after_the_limit_are_not_looked_at(checkpoint_folder, data, tmp_path):
    data.write_text(data.read_text().splitlines()[1] + "\n{oops\n")
    assert run("evaluate", checkpoint_folder, "--data", data, "--limit", 1, "--max-tokens", 3).returncode == 0


def test_files_of_the_current_folder_are_not_run(checkpoint_folder, data, tmp_path):
    """A process of its own measures the memory."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "queue.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    program = Path(sys.executable).with_name("tianquan")
    command = [program, "evaluate", checkpoint_folder, "--data", data, "--limit", "1", "--max-tokens", "3"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result
    assert not (tmp_path / "ran").exists()


def test_names_of_groups_are_foreign_text(checkpoint_folder, data):
    records = [json.loads(line) for line in data.read_text().splitlines()[1:] * 2]
    for record, task in zip(records, ("a\nb | c", "\x1b[31mred", "(none)", None), strict=True):
        del record["task"]
        record.update({} if task is None else {"task": task})
    data.write_text("\n".join(map(json.dumps, records)))
    evaluation = Evaluation(plan(checkpoint_folder, data), lambda *_: None, lambda _: None)
    evaluation.run()
    found = report.to_dict(evaluation, ["records.jsonl"])
    assert found["results"][0]["tasks"]["(none)"]["records"] == 2
    text = report.to_markdown(found)
    assert "\x1b" not in text
    assert "| a\\nb \\| c | 1 |" in text


def test_videos_are_pictures_and_sound_where_it_is_heard(checkpoint_folder, tmp_path):
    path = tmp_path / "films.jsonl"
    talk = [{"role": "user", "content": {"text": "What?", "video": "a.mp4"}}, {"role": "assistant", "content": "x"}]
    path.write_text(json.dumps({"conversations": talk}), encoding="utf-8")
    assert plan(checkpoint_folder, path).media_kinds == ("image",)
    heard = MediaPolicy(video=VideoPolicy(with_sound=True))
    assert plan(checkpoint_folder, path, policy=heard).media_kinds == ("image", "audio")


def test_a_low_bit_reference_has_no_towers_to_vary(reference_llm, checkpoint_folder, data, tmp_path):
    import tianquan

    tianquan.load(checkpoint_folder, precision="int8").save_low_bit(tmp_path / "int8")
    evaluation = Evaluation(
        plan(tmp_path / "int8", data, precisions=(None,), reference=(str(tmp_path / "int8"), "int8")),
        lambda *_: None,
        lambda _: None,
    )
    evaluation.run()
    found = report.to_dict(evaluation, [])
    assert found["results"][0]["sensitivity"] == {}
    assert "low-bit folder" in found["notes"][0]
    assert found["notes"][0] in report.to_markdown(found)


def write_adapter(folder, scale):
    """A LoRA adapter of rank 1 on the language model's first output projection."""
    folder.mkdir()
    key = "base_model.model.llm.model.layers.0.self_attn.o_proj"
    factors = {f"{key}.lora_A.weight": np.ones((1, 256), np.float32)}
    factors[f"{key}.lora_B.weight"] = np.full((256, 1), scale, np.float32)
    write_safetensors(folder / "adapter_model.safetensors", {name: ("F32", data) for name, data in factors.items()})
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": "none", "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("scale", [0.0, 0.05])
def test_an_adapter_is_evaluated_against_the_model_without_it(checkpoint_folder, data, tmp_path, scale):
    settings = {
        "precisions": ("float32",),
        "reference": (str(checkpoint_folder), "float32"),
        "sensitivity": False,
        "adapter": write_adapter(tmp_path / "adapter", scale),
    }
    evaluation = Evaluation(plan(checkpoint_folder, data, **settings), lambda *_: None, lambda _: None)
    evaluation.run()
    found = report.to_dict(evaluation, [])
    assert found["adapter"] == str(tmp_path / "adapter")
    assert (found["results"][0]["divergence"]["all"]["kl"] > 1e-6) == (scale > 0)
    assert "sensitivity" not in report.to_markdown(found)


def test_formats_of_keys_and_values_are_rows(checkpoint_folder, data):
    settings = {"precisions": ("float32",), "reference": (str(checkpoint_folder), "float32"), "sensitivity": False}
    evaluation = Evaluation(
        plan(checkpoint_folder, data, **settings, kv_formats=("float32", "float16", "int8")),
        lambda *_: None,
        lambda _: None,
    )
    evaluation.run()
    found = report.to_dict(evaluation, [])
    names = [(result["precision"], result["kv_format"]) for result in found["results"]]
    assert names == [
        ("float32, kv float32", "float32"),
        ("float32, kv float16", "float16"),
        ("float32, kv int8", "int8"),
    ]
    exact, halves, bytes_ = (result["divergence"]["all"]["kl"] for result in found["results"])
    assert exact == 0  # the reference keeps float32 keys and values
    assert 0 < halves < bytes_ < 0.1
    assert halves < 1e-4
    assert f"{halves:.1e}" in report.to_markdown(found)


def test_only_the_native_backend_has_formats_of_keys_and_values(checkpoint_folder, data):
    evaluation = Evaluation(
        plan(checkpoint_folder, data, backend="reference", kv_formats=("int8",)), lambda *_: None, lambda _: None
    )
    with pytest.raises(ParameterError, match="native backend"):
        evaluation.run()


def test_parse_reference():
    assert parse_reference("owner/name@main@float32") == ("owner/name@main", "float32")
    for text in ("folder", "@float32", ""):
        with pytest.raises(ParameterError, match="MODEL@precision"):
            parse_reference(text)
    with pytest.raises(ParameterError, match="int3"):
        parse_reference("folder@int3")


def test_refused(checkpoint_folder, data, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert_refused(run("evaluate", checkpoint_folder, "--data", empty), "has no records")
    assert_refused(run("evaluate", checkpoint_folder, "--data", data, "--precision", "int3"), "int3")
    assert_refused(run("evaluate", checkpoint_folder, "--data", data, "--json", "/no/such/x.json"), "/no/such")
    assert_refused(run("evaluate", checkpoint_folder, "--data", data, "--json", data), "holds the records")
    same = ("--json", tmp_path / "x", "--markdown", tmp_path / "x")
    assert_refused(run("evaluate", checkpoint_folder, "--data", data, *same), "another output already")
    data.write_text(data.read_text().replace("a.png", "b.png"))
    assert_refused(run("evaluate", checkpoint_folder, "--data", data), "records.jsonl:1", "b.png")
