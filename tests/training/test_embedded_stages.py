"""Which stages of the embedded model's training a folder has, and what is said where one is missing."""

from __future__ import annotations

import shutil

import pytest
from embedded_model.curriculum import stages_before
from embedded_model.release import release
from embedded_model.train import trained_stages

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
