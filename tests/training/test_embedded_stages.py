"""Which stages of the embedded model's training a folder has, and what is said where one is missing."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from embedded_model.curriculum import STAGES, stages_before
from embedded_model.deepen import Depth, depth
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


@pytest.mark.parametrize("more", [Depth(1, 0), Depth(0, 2)])
def test_a_deeper_stage_starts_from_a_deeper_model(more, tmp_path, monkeypatch):
    shutil.copytree(find_folder("embedded", None), tmp_path / "blueprint")
    old = depth(tmp_path / "blueprint")
    new = Depth(old.language + more.language, old.vision + more.vision)
    last = list(STAGES)[-1]
    same = replace(STAGES[last], depth=old)
    stages = {**STAGES, last: same, "new": replace(same, after=last, depth=new)}
    monkeypatch.setattr(train, "STAGES", stages)
    monkeypatch.setattr("embedded_model.curriculum.STAGES", stages)
    for name, wanted in ((last, old), ("new", new)):
        checkpoint, _, tree = load_start(tmp_path, name, has_start=True)
        assert (checkpoint.config.language.num_layers, checkpoint.config.vision.num_layers) == wanted
        assert tree.get_parameter(f"llm.model.layers.{wanted.language - 1}.mlp.up_proj.weight").any()
        assert tree.get_parameter(f"vision.vpm.encoder.layers.{wanted.vision - 1}.mlp.fc1.weight").any()
    deeper = f"blueprint-{new.language}-{new.vision}-layers"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blueprint", deeper]


def test_a_folder_goes_on_from_what_it_began_with(tmp_path):
    start = find_folder("embedded", None)
    train._begin(tmp_path / "blueprint", start)
    train._begin(tmp_path / "blueprint", start)
    train._begin(tmp_path / "blueprint", None)
    other = tmp_path / "other"
    shutil.copytree(start, other)
    (other / "model.safetensors").write_bytes(b"another")
    with pytest.raises(ParameterError, match="began with other weights"):
        train._begin(tmp_path / "blueprint", other)
