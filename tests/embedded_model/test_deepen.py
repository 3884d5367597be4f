"""A model with more layers begins by saying what it said."""

from __future__ import annotations

import numpy as np
import pytest
from embedded_model.deepen import Depth, deepen, depth

import tianquan
from tianquan.checkpoint import find_folder

MESSAGES = [{"role": "user", "content": {"text": "What is this?", "image": np.full((70, 50, 3), 90, np.uint8)}}]


@pytest.fixture(scope="module")
def embedded():
    return find_folder("embedded", None)


@pytest.mark.parametrize("more", [Depth(1, 0), Depth(2, 3), Depth(0, 1), Depth(4, 2)])
def test_new_layers_change_nothing(embedded, more, tmp_path):
    old = depth(embedded)
    wanted = Depth(old.language + more.language, old.vision + more.vision)
    deepen(embedded, tmp_path / "deep", wanted)
    shallow, deep = (tianquan.load(folder, precision="float32") for folder in (embedded, tmp_path / "deep"))
    config = deep.checkpoint.config
    assert (config.language.num_layers, config.vision.num_layers) == wanted
    np.testing.assert_array_equal(deep.trace(MESSAGES).logits, shallow.trace(MESSAGES).logits)


def test_layers_are_not_taken_away_nor_more_than_doubled(embedded, tmp_path):
    old = depth(embedded)
    for language in (old.language - 1, 2 * old.language + 1):
        with pytest.raises(ValueError, match=f"{language} were asked for"):
            deepen(embedded, tmp_path / "deep", Depth(language, old.vision))
    for vision in (old.vision - 1, 2 * old.vision + 1):
        with pytest.raises(ValueError, match=f"{vision} were asked for"):
            deepen(embedded, tmp_path / "deep", Depth(old.language, vision))
