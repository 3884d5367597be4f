"""Adapting a small checkpoint from end to end, and what adapters must keep."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import command_line
from tianquan.backends.torch import TorchOps
from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.adapter import Adapter
from tianquan.checkpoint.dense_folder import save_dense, source_format
from tianquan.errors import CheckpointError, ParameterError, TianquanError
from tianquan.llm import LLM
from tianquan.loading import load
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import find_recipe
from tianquan.training.adapters import LoraSettings, adapted_names, attach_lora, save_adapter
from tianquan.training.finetune import FinetuneOptions, Finetuning, _round, score_records
from tianquan.training.module_tree import ModuleTree, count_parameters
from tianquan.training.objective import AnswerObjective
from tianquan.training.records import RecordError
from tianquan.training.report import FinetuneReport, Score, write_report
from tianquan.training.state import StateError
from tolerances import CONFORMANCE, relative_rmse

TALKS = [
    ({"text": "What is it?", "image": "tiny_100x60.png"}, "a circle"),
    ({"text": "Say it.", "audio": "speech_1s_16k.wav"}, "one"),
    ({"text": "Hello"}, "good morning"),
    ({"text": "你好", "image": "tiny_100x60.png", "audio": "speech_1s_16k.wav"}, "圆形"),
]
MESSAGES = [{"role": "user", "content": TALKS[3][0]}]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    lines = [
        {"conversations": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "task": f"t{n % 2}"}
        for n, (q, a) in enumerate(TALKS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def options(records, checkpoint_folder, media_root, tmp_path):
    return FinetuneOptions(
        model=str(checkpoint_folder),
        data=records,
        output=tmp_path / "out",
        evaluation_data=records,
        media_root=media_root,
        max_steps=6,
        epochs=100,
        batch_size=2,
        learning_rate=5e-3,
        lora=LoraSettings(rank=4, alpha=8.0),
    )


def full(options, **changes):
    return replace(options, method="full", lora=None, **changes)


def quiet(*_):
    pass


def load_tree(folder, precision="float32"):
    checkpoint = open_checkpoint(folder)
    ops = TorchOps("cpu")
    recipe = find_recipe(precision)
    tree = ModuleTree(checkpoint.weights(recipe, ops))
    model = OmniModel(checkpoint.config, tree, ops)
    model.load_vision()
    model.load_audio()
    return LLM(checkpoint, model, recipe), tree


def load_objective(folder, precision):
    llm, tree = load_tree(folder, precision)
    return AnswerObjective(llm.model, tree)


@pytest.mark.parametrize("precision", ["float32", "int4", "int8"])
def test_fresh_lora_changes_nothing(checkpoint_folder, media_root, precision):
    llm, tree = load_tree(checkpoint_folder, precision)
    before = llm.trace(MESSAGES, media_root=media_root)
    names = adapted_names(llm.checkpoint.config, ["language_model", "vision", "resampler", "audio"])
    attach_lora(tree, names, LoraSettings(rank=2))
    after = llm.trace(MESSAGES, media_root=media_root)
    np.testing.assert_array_equal(after.logits, before.logits)
    assert {name for name, p in tree.named_parameters() if p.requires_grad} == {
        name for name, _ in tree.named_parameters() if ".lora_" in name
    }


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_loss_falls(options, method):
    options = replace(options, method=method, lora=None if method == "full" else options.lora, max_steps=12)
    report = Finetuning(options, quiet).run()
    assert report.after.loss < 0.8 * report.before.loss
    assert (options.output / "report.md").read_text().startswith("# Training report")
    assert (options.output / ("model" if method == "full" else "adapter")).is_dir()
    with pytest.raises(ParameterError, match="finished"):
        Finetuning(options, quiet)


def test_merged_is_attached(options, checkpoint_folder, media_root, tmp_path):
    """The factors in training, the adapter added at load, and the merged checkpoint say the same."""
    llm, tree = load_tree(checkpoint_folder)
    parts = ["language_model", "vision", "resampler", "audio"]
    config = attach_lora(tree, adapted_names(llm.checkpoint.config, parts), LoraSettings(rank=2))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tree.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05)
    attached = llm.trace(MESSAGES, media_root=media_root)
    save_adapter(tree, config, "base", tmp_path / "adapter")

    merged = tmp_path / "merged"
    assert (
        command_line.run("merge", checkpoint_folder, tmp_path / "adapter", merged, "--format", "float32").returncode
        == 0
    )
    found = {
        name: load(folder, precision="float32", adapter=adapter).trace(MESSAGES, media_root=media_root)
        for name, folder, adapter in (
            ("merged", merged, None),
            ("beside", checkpoint_folder, tmp_path / "adapter"),
            ("base", checkpoint_folder, None),
        )
    }
    assert relative_rmse(found["base"].logits, attached.logits) > 100 * CONFORMANCE
    for name, expected in attached.to_arrays().items():
        if name != "prompt_token_ids":
            for way in ("merged", "beside"):
                assert relative_rmse(found[way].to_arrays()[name], expected) < CONFORMANCE, (name, way)


def test_full_training_writes_what_it_trained_and_nothing_else(options, checkpoint_folder):
    Finetuning(full(options, parts=("audio_projection", "resampler")), quiet).run()
    before, after = (open_checkpoint(folder).files for folder in (checkpoint_folder, options.output / "model"))
    changed = {name for name in before.tensors if not np.array_equal(before.dense(name).data, after.dense(name).data)}
    assert changed
    assert all(name.startswith(("vision.resampler.", "audio.audio.proj", "audio.audio.audio_bos")) for name in changed)


def test_quantization_aware_training_measures_what_the_recipe_will_answer(options, checkpoint_folder, tmp_path):
    """The score after training is that of the saved checkpoint with its weights rounded."""
    llm, tree = load_tree(checkpoint_folder)
    save_dense(checkpoint_folder, llm.checkpoint.config, tree, "float32", tmp_path / "base")
    options = full(options, model=str(tmp_path / "base"), parts=("language", "resampler"))
    training = Finetuning(replace(options, quantization_aware="int4"), quiet)
    after = training.run().after
    losses = {
        precision: score_records(load_objective(options.output / "model", precision), training.evaluation, quiet).loss
        for precision in ("float32", "int4")
    }
    assert after.loss == pytest.approx(losses["int4"], rel=1e-5)
    assert after.loss != pytest.approx(losses["float32"], rel=1e-2)
    assert after.loss < 2


def test_quantization_aware_weights_are_written_as_they_were_trained(options):
    """Rounded to the bfloat16 of the checkpoint they would have other scales."""
    training = Finetuning(full(options, quantization_aware="int4"), quiet)
    after = training.run().after
    assert source_format(open_checkpoint(options.output / "model").files) == "float32"
    loss = score_records(load_objective(options.output / "model", "int4"), training.evaluation, quiet).loss
    assert after.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("recipe", "message"), [("float16", "no matrix in low bits"), ("int5", "unknown precision")])
def test_quantization_aware_needs_a_recipe_that_rounds(options, recipe, message):
    with pytest.raises(ParameterError, match=message):
        Finetuning(full(options, quantization_aware=recipe), quiet).run()


def test_a_head_that_is_the_embedding_is_not_rounded_in_part(checkpoint_folder):
    llm, tree = load_tree(checkpoint_folder)
    config = llm.checkpoint.config
    tied = replace(config, language=replace(config.language, tie_word_embeddings=True))
    with pytest.raises(ParameterError, match="head of its own"):
        _round(tree, replace(llm.checkpoint, config=tied), "int4")


def test_interrupted_is_uninterrupted(options, tmp_path, monkeypatch):
    from tianquan.training import finetune
    from tianquan.training.trainer import Trainer

    Finetuning(options, quiet).run()
    part = replace(options, output=tmp_path / "parts")

    class Impatient(Trainer):
        def train(self):
            self._stop_after = 0.0
            super().train()
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "Trainer", Impatient)
    for _ in range(options.max_steps - 1):
        with pytest.raises(KeyboardInterrupt):
            Finetuning(part, quiet).run()
    monkeypatch.undo()
    Finetuning(part, quiet).run()
    config = open_checkpoint(Path(options.model)).config
    whole, parts = (Adapter.open(one.output / "adapter", config) for one in (options, part))
    for name, factors in whole.factors.items():
        for a, b in zip(factors, parts.factors[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_gradient_checkpointing_gives_the_same_weights(options, tmp_path):
    config = open_checkpoint(Path(options.model)).config
    Finetuning(options, quiet).run()
    Finetuning(replace(options, gradient_checkpointing=True, output=tmp_path / "less"), quiet).run()
    one, two = (Adapter.open(folder / "adapter", config) for folder in (options.output, tmp_path / "less"))
    for name, (a, _) in one.factors.items():
        np.testing.assert_allclose(a, two.factors[name][0], rtol=1e-4, atol=1e-6)


def test_bad_records_stop_or_are_skipped(options, records):
    lines = records.read_text(encoding="utf-8").splitlines()
    lines.insert(1, "{broken")
    lines[2] = lines[2].replace("Say", "Caf\udce9")  # a byte of Latin-1
    lines.append(
        json.dumps(
            {"messages": [{"role": "user", "content": {"image": "none.png"}}, {"role": "assistant", "content": "x"}]}
        )
    )
    records.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RecordError, match=r"records\.jsonl:2: .*--on-bad-record skip"):
        Finetuning(options, quiet)
    finetuning = Finetuning(replace(options, on_bad_record="skip", evaluation_data=None), quiet)
    assert len(finetuning.dataset) == len(TALKS) - 1
    skipped = [line.partition(": ")[0] for line in finetuning.dataset.skipped]
    assert skipped == [f"records.jsonl:{line}" for line in (2, 3, 6)]


def test_paths_need_be_no_text(options, records):
    folder = Path(os.fsdecode(os.fsencode(records.parent) + b"/caf\xe9"))
    folder.mkdir()
    data = records.rename(folder / "records.jsonl")
    Finetuning(replace(options, data=data, evaluation_data=None), quiet).run()
    assert (options.output / "adapter").is_dir()
    assert r"caf\udce9" in (options.output / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("changed", ["weights", "picture", "template"])
def test_a_run_is_not_resumed_on_another_model_or_other_media(
    options, checkpoint_folder, media_root, tmp_path, changed
):
    model, media = tmp_path / "base", tmp_path / "media"
    shutil.copytree(checkpoint_folder, model)
    shutil.copytree(media_root, media)
    options = replace(options, model=str(model), media_root=media)

    def fingerprint():
        return Finetuning(options, quiet)._fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    if changed == "weights":
        shard = next(model.glob("*.safetensors"))
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    elif changed == "template":
        settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        (model / "chat_template.jinja").write_text(settings["chat_template"], encoding="utf-8")
    else:
        shutil.copyfile(media / "crop_448x448.png", media / "tiny_100x60.png")
    assert fingerprint() != before


def test_a_run_is_resumed_wherever_its_model_and_records_lie(options, checkpoint_folder, records, tmp_path):
    before = Finetuning(options, quiet)._fingerprint()
    shutil.copytree(checkpoint_folder, tmp_path / "moved")
    data = Path(shutil.copy(records, tmp_path / "moved.jsonl"))
    assert Finetuning(replace(options, model=str(tmp_path / "moved"), data=data), quiet)._fingerprint() == before


def test_what_cannot_be_resumed_is_refused_before_anything_is_measured(options, monkeypatch):
    Finetuning(replace(options, max_steps=1), quiet).run()
    shutil.rmtree(options.output / "adapter")
    monkeypatch.setattr(Finetuning, "_build", lambda *_: pytest.fail("built before it was refused"))
    with pytest.raises(StateError, match=r"another plan \(rank 4, now 8\)"):
        Finetuning(replace(options, max_steps=1, lora=LoraSettings(rank=8, alpha=8.0)), quiet).run()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"method": "full", "quantization_aware": "int3", "lora": None}, "int3"),
    ],
)
def test_impossible_options_are_refused_before_records_are_read(options, monkeypatch, change, words):
    monkeypatch.setattr(Finetuning, "_open_dataset", lambda *_: pytest.fail("read before it was refused"))
    with pytest.raises(TianquanError, match=words):
        Finetuning(replace(options, **change), quiet)


def test_an_output_that_is_a_file_is_named(options):
    options.output.write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot be written.*name another output"):
        Finetuning(options, quiet)


def test_the_table_of_scores_has_a_row_for_each_name(tmp_path):
    correct = {"": (1, 2), "all": (1, 1), "a|b": (0, 1), "c\nd": (1, 1)}
    score = Score(1.0, 5, correct)
    report = FinetuneReport(
        options={"data": "a|b"}, num_records=5, skipped=[], num_trained=1, num_parameters=1, before=score, after=score
    )
    (tmp_path / "run").mkdir()
    text = write_report(report, tmp_path).read_text()
    for row in (
        "| (none) | 2 |",
        "| all | 1 |",
        "| a\\|b | 1 |",
        "| c\\nd | 1 |",
        "| **all** | 5 |",
        "| data | a\\|b |",
    ):
        assert row in text, row


def test_low_bits_of_a_head_that_is_the_embedding(checkpoint_folder):
    """One matrix under two names; and it counts though it is no parameter."""
    checkpoint = open_checkpoint(checkpoint_folder)
    config = replace(checkpoint.config.language, tie_word_embeddings=True)
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, language=config))
    sizes = []
    for precision in ("float32", "int4"):
        tree = ModuleTree(checkpoint.weights(find_recipe(precision), TorchOps("cpu")))
        OmniModel(checkpoint.config, tree, TorchOps("cpu"))
        sizes.append(count_parameters(tree)[1])
    assert sizes[0] == sizes[1] > 100_000


@pytest.mark.parametrize(
    "change",
    [
        {"parts": ()},
        {"epochs": 0.0},
        {"batch_size": 0},
        {"accumulation": 0},
        {"max_tokens": 0},
        {"max_steps": 0},
        {"warmup": 2.0},
        {"quantization_aware": "int4"},
        {"method": "full"},  # with a rank
        {"base_precision": "int4"},  # of a float32 base
    ],
)
def test_absurd_options(options, change):
    with pytest.raises(ParameterError):
        replace(options, **change)


@pytest.mark.parametrize(
    ("method", "given", "used"), [("lora", None, 1e-4), ("full", None, 2e-5), ("full", 1e-4, 1e-4), ("qlora", 0.1, 0.1)]
)
def test_the_rate_is_the_one_given_or_the_methods(options, method, given, used):
    options = replace(options, method=method, lora=None, learning_rate=given)
    assert Finetuning(options, quiet)._plan(1, {}).learning_rate == used


def test_what_no_record_uses_is_not_trained(options, records):
    lines = records.read_text(encoding="utf-8").splitlines()
    records.write_text(lines[2], encoding="utf-8")  # text alone
    for part, medium in (("vision", "image"), ("audio_projection", "audio")):
        with pytest.raises(ParameterError, match=f"no record has {medium} to train {part} on"):
            Finetuning(replace(options, parts=("language", part)), quiet).run()


@pytest.mark.parametrize("part", ["vision", "resampler", "audio", "audio_projection"])
def test_one_tower_is_trained_on_records_of_all_kinds(options, part):
    report = Finetuning(replace(options, parts=(part,), batch_size=1, max_steps=8), quiet).run()
    assert report.after.loss < report.before.loss


@pytest.mark.parametrize("change", ["evaluation_data", "method", "broken"])
def test_the_score_before_is_of_what_is_trained(options, records, tmp_path, change, monkeypatch):
    """A run that stopped before its first state leaves a score that another run must not take for its own."""
    from tianquan.training import finetune
    from tianquan.training.trainer import Trainer

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        Finetuning(options, quiet).run()
    measured = []
    score = finetune.score_records
    monkeypatch.setattr(finetune, "score_records", lambda *of: measured.append(of) or score(*of))
    with pytest.raises(KeyboardInterrupt):
        Finetuning(options, quiet).run()
    assert not measured  # the same run: what was measured is kept
    if change == "broken":
        (options.output / "run" / "score-before.json").write_text("{")
        other = options
    elif change == "method":
        other = replace(options, method="qlora")
    else:
        fewer = tmp_path / "fewer.jsonl"
        fewer.write_text("".join(records.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
        other = replace(options, evaluation_data=fewer)
    with pytest.raises(KeyboardInterrupt):
        Finetuning(other, quiet).run()
    assert len(measured) == 1


def test_records_that_were_skipped_are_listed_evaluations_too(options, records, tmp_path):
    broken = tmp_path / "held_out.jsonl"
    broken.write_text(records.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    report = Finetuning(replace(options, evaluation_data=broken, on_bad_record="skip", max_steps=1), quiet).run()
    assert [line.partition(": ")[0] for line in report.skipped] == ["held_out.jsonl:5"]


def test_low_bit_folders_are_not_trained(options, checkpoint_folder, tmp_path):
    assert command_line.run("quantize", checkpoint_folder, tmp_path / "low").returncode == 0
    with pytest.raises(ParameterError, match="low-bit"):
        Finetuning(replace(options, model=str(tmp_path / "low")), quiet)


def test_the_command(options, records, checkpoint_folder, media_root, tmp_path):
    out = tmp_path / "cli"
    result = command_line.run(
        *("finetune", checkpoint_folder, "--data", records, "--output", out, "--media-root", media_root),
        *("--rank", 2, "--max-steps", 2, "--train", "language", "--train", "resampler"),
    )
    assert "4 records" in result.stdout, result
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
