"""Which stages of the embedded model's training a folder has, and what is said where one is missing."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from embedded_model.curriculum import STAGES, stages_before
from embedded_model.deepen import num_layers
from embedded_model.release import release
from embedded_model.train import load_start, trained_stages

from embedded_model import train
from tianquan.checkpoint import find_folder
from tianquan.errors import ParameterError

NAMES = stages_before("finish")


def with_stages(folder, names):
    for name in names:
        (folder / name / "state-00000001").mkdir(parents=True)
    return folder


def test_all_stages_before_are_needed_from_nothing(tmp_path):
    folder = with_stages(tmp_path, NAMES)
    assert trained_stages(folder, NAMES, has_start=False) == list(NAMES)
    (folder / NAMES[0] / "state-00000001").rmdir()
    with pytest.raises(ParameterError, match=NAMES[0]):
        trained_stages(folder, NAMES, has_start=False)


def test_after_a_start_stages_may_be_missing(tmp_path):
    assert trained_stages(tmp_path, NAMES, has_start=True) == []
    folder = with_stages(tmp_path, NAMES[2:])
    assert trained_stages(folder, NAMES, has_start=True) == list(NAMES[2:])


def test_a_stage_that_was_not_trained_is_not_released(tmp_path):
    shutil.copytree(find_folder("embedded", None), tmp_path / "blueprint")
    with pytest.raises(ParameterError, match="finish"):
        release(tmp_path, "finish", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_deeper_stage_starts_from_a_deeper_model(tmp_path, monkeypatch):
    shutil.copytree(find_folder("embedded", None), tmp_path / "blueprint")
    layers = num_layers(tmp_path / "blueprint")
    last = list(STAGES)[-1]
    same = replace(STAGES[last], num_layers=layers)
    stages = {**STAGES, last: same, "new": replace(same, after=last, num_layers=layers + 1)}
    monkeypatch.setattr(train, "STAGES", stages)
    monkeypatch.setattr("embedded_model.curriculum.STAGES", stages)
    for name, wanted in ((last, layers), ("new", layers + 1)):
        checkpoint, _, tree = load_start(tmp_path, name, has_start=True)
        assert checkpoint.config.language.num_layers == wanted
        assert tree.get_parameter(f"llm.model.layers.{wanted - 1}.mlp.up_proj.weight").any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blueprint", f"blueprint-{layers + 1}-layers"]
