"""A language model with more layers begins by saying what it said."""

from __future__ import annotations

import numpy as np
import pytest
from embedded_model.deepen import deepen, num_layers

import tianquan
from tianquan.checkpoint import find_folder

MESSAGES = [{"role": "user", "content": {"text": "What is this?", "image": np.full((70, 50, 3), 90, np.uint8)}}]


@pytest.fixture(scope="module")
def embedded():
    return find_folder("embedded", None)


@pytest.mark.parametrize("more", [1, 2, 4])
def test_new_layers_change_nothing(embedded, more, tmp_path):
    layers = num_layers(embedded) + more
    deepen(embedded, tmp_path / "deep", layers)
    shallow, deep = (tianquan.load(folder, precision="float32") for folder in (embedded, tmp_path / "deep"))
    assert deep.checkpoint.config.language.num_layers == layers
    np.testing.assert_array_equal(deep.trace(MESSAGES).logits, shallow.trace(MESSAGES).logits)


def test_layers_are_not_taken_away_nor_more_than_doubled(embedded, tmp_path):
    for layers in (num_layers(embedded) - 1, 2 * num_layers(embedded) + 1):
        with pytest.raises(ValueError, match=f"{layers} were asked for"):
            deepen(embedded, tmp_path / "deep", layers)
