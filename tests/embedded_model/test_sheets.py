"""Sheets: large, mostly blank, and what is on them lies inside one square."""

from __future__ import annotations

import numpy as np
import pytest
from embedded_model.blueprint import MAX_SLICES
from embedded_model.sheets import UNIT

from tianquan.checkpoint import find_folder, open_checkpoint
from tianquan.request import ImagePolicy, MediaPolicy


@pytest.mark.parametrize("task", ["sheet_number", "sheet_shape"])
def test_the_thing_lies_inside_one_square_and_is_labelled(task, train):
    for n in range(40):
        sample = train.sample(n, {task: 1.0})
        (picture,) = sample.pictures
        width, height = picture.image.size
        assert width % UNIT == height % UNIT == 0
        rows, cols = np.nonzero(picture.labels.index)
        assert rows.size > 0
        assert len({(row // UNIT, col // UNIT) for row, col in zip(rows, cols, strict=True)}) == 1
        for x, y in picture.labels.centres:  # of a ring it is a hole
            assert rows.min() <= y <= rows.max()
            assert cols.min() <= x <= cols.max()
        assert bool(picture.labels.centres) == (task == "sheet_shape")


def test_a_sheet_is_cut_at_its_squares(train):
    processor = open_checkpoint(find_folder("embedded", None)).processor
    policy = MediaPolicy(image=ImagePolicy(max_slices=MAX_SLICES))
    for n in range(12):
        sample = train.sample(n, {"sheet_number": 1.0})
        (image,) = processor(sample.conversation[:1], policy).images
        width, height = sample.pictures[0].image.size
        assert (image.grid.cols, image.grid.rows) == (width // UNIT, height // UNIT)
        assert len(processor(sample.conversation[:1]).images[0].slices) == 1  # unasked, it is shown whole
