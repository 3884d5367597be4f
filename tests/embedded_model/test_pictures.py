"""Scenes: named colours are apart, objects lie inside and apart, labels agree with the plan and the pixels."""

from __future__ import annotations

import random

import numpy as np
import pytest
from embedded_model.cell_targets import cell_labels
from embedded_model.label_map import LabelMap
from embedded_model.pictures import Wanted, draw_scene, plan_scene
from embedded_model.writing import draw_text
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from embedded_model import colours, fonts, pictures, shapes, words

CSS_COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "orange": (255, 165, 0),
    "purple": (128, 0, 128),
    "pink": (255, 192, 203),
    "brown": (165, 42, 42),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "cyan": (0, 255, 255),
}

wanted_lists = st.lists(
    st.builds(Wanted, shape=st.sampled_from(shapes.SHAPE_NAMES), colour=st.sampled_from(colours.COLOUR_NAMES)),
    min_size=1,
    max_size=8,
)


def nearest_colour(rgb: tuple[int, int, int]) -> str:
    return min(colours.COLOURS, key=lambda c: min(colours.distance(rgb, anchor) for anchor in c.anchors)).name


def test_css_colours_are_anchors():
    assert {name: rgb in colours.BY_NAME[name].anchors for name, rgb in CSS_COLOURS.items()} == dict.fromkeys(
        CSS_COLOURS, True
    )


@pytest.mark.parametrize("colour", colours.COLOURS, ids=lambda colour: colour.name)
def test_no_sampled_colour_is_nearer_to_another_name(colour):
    rng = random.Random(0)
    assert {nearest_colour(colours.sample_rgb(colour, rng)) for _ in range(300)} == {colour.name}


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=lambda shape: shape.name)
def test_outlines_fit_the_unit_circle(shape):
    rng = random.Random(0)
    for _ in range(50):
        points = shapes.sample_outline(shape, rng, upright=False)
        assert max(x * x + y * y for x, y in points) < 1.001
        assert shapes.area(points) > 0.5


@settings(max_examples=60)
@given(wanted_lists, st.integers(0, 2**32), st.sampled_from([(112, 112), (168, 112), (96, 140), (224, 224)]))
def test_objects_lie_inside_and_apart(wanted, seed, size):
    scene = plan_scene(wanted, size, random.Random(seed))
    things = scene.objects
    assert [(thing.shape, thing.colour) for thing in things] == [(want.shape, want.colour) for want in wanted]
    for n, a in enumerate(things):
        assert a.radius <= min(a.x, a.y, size[0] - a.x, size[1] - a.y)
        assert a.radius >= 4
        for b in things[:n]:
            assert (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (a.radius + b.radius) ** 2


@settings(max_examples=60)
@given(wanted_lists, st.integers(0, 2**32))
def test_labels_and_pixels_agree_with_the_plan(wanted, seed):
    rng = random.Random(seed)
    scene = plan_scene(wanted, (168, 168), rng)
    picture = draw_scene(scene, rng, np.random.default_rng(seed))
    for thing in scene.objects:
        x, y = thing.x, thing.y
        if thing.hole:
            x += thing.radius * (1 + thing.hole) / 2
        box = (x - 1, y - 1, x + 1, y + 1)  # one patch around the point
        labels = picture.labels.patches(1, 1, box)
        assert labels.shape[0, 0] == shapes.SHAPE_CLASS[thing.shape]
        assert labels.colour[0, 0] == colours.COLOUR_CLASS[thing.colour]
        if thing.radius * (1 - thing.hole) > 12 and thing.stroke is None:  # JPEG mixes the colours of what is thinner
            seen = np.asarray(picture.image)[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].reshape(-1, 3).mean(0)
            assert np.abs(seen - thing.rgb).max() < 45  # light, grain, JPEG
    patches = picture.labels.patches()
    assert patches.shape.shape == (12, 12)
    assert (patches.centre > 0).sum() <= len(scene.objects)
    assert ((patches.shape > 0) == (patches.colour > 0)).all()


def test_a_cell_tells_of_the_two_leftmost_objects_in_it():
    centres = ((52.0, 20.0), (40.0, 30.0), (50.0, 50.0), (100.0, 100.0))
    labels = LabelMap(
        index=np.zeros((112, 112), np.uint8), shapes=(0, 1, 2, 3, 4), colours=(0, 5, 6, 7, 8), centres=centres
    )
    cells = cell_labels(labels.things(2), 2)
    assert (cells.shape.tolist(), cells.second_shape.tolist()) == ([2, 0, 0, 4], [3, 0, 0, 0])
    assert (cells.colour.tolist(), cells.second_colour.tolist()) == ([6, 0, 0, 8], [7, 0, 0, 0])
    quarter = cell_labels(labels.things(1, (51.0, 0.0, 112.0, 56.0)), 1)
    assert (quarter.shape.tolist(), quarter.second_shape.tolist()) == ([1], [0])


def test_patches_know_whose_they_are():
    index = np.zeros((40, 40), np.uint8)
    index[:12, :10], index[:, 30:] = 1, 2
    labels = LabelMap(index=index, shapes=(0, 1, 2), colours=(0, 5, 6), centres=((5.0, 5.0), (35.0, 20.0)))
    assert labels.owners(2, 4, labels.things(4)).tolist() == [[1, 0, 0, 2], [0, 0, 0, 2]]
    upper = (0.0, 0.0, 40.0, 15.0)  # has the second's upper part, not its middle
    assert labels.owners(1, 4, labels.things(4, upper), upper).tolist() == [[1, 0, 0, -1]]
    left = (20.0, 0.0, 40.0, 40.0)
    assert labels.owners(1, 2, labels.things(4, left), left).tolist() == [[0, 1]]  # its number among those in the box
    assert LabelMap(index=index * 0).owners(2, 2, ()).tolist() == [[0, 0], [0, 0]]


def test_what_covers_no_centre_has_the_patch_of_its_middle():
    index = np.zeros((40, 40), np.uint8)
    index[16:24, 16:24], index[4:7, 4:7] = 1, 2
    labels = LabelMap(index=index, shapes=(0, 1, 2), colours=(0, 5, 6), centres=((20.0, 20.0), (5.5, 5.5)))
    assert labels.owners(2, 2, labels.things(4)).tolist() == [[1, 0], [0, 2]]  # things are told from left to right
    assert labels.patches(2, 2).shape.tolist() == [[2, 0], [0, 1]]
    index[8:12, 8:12] = 1  # under a centre
    assert labels.owners(2, 2, labels.things(4)).tolist() == [[2, 0], [0, 0]]
    ink = np.where(index == 2, 1, 0).astype(np.uint8)
    assert LabelMap(index=ink, characters=(0, 9), colours=(0, 3)).patches(1, 1).character.tolist() == [[9]]


def test_characters_own_patches_too():
    index = np.zeros((20, 40), np.uint8)
    index[:, :20], index[:, 20:] = 2, 1  # numbered otherwise than they are read
    labels = LabelMap(index=index, characters=(0, 7, 8), colours=(0, 1, 1))
    things = labels.things(4)
    assert [things[n - 1].character for n in labels.owners(1, 2, things)[0]] == [8, 7]


def test_a_cell_tells_of_its_characters_in_the_order_they_are_read():
    index = np.zeros((112, 112), np.uint8)
    for n, (left, right) in enumerate(((2, 20), (20, 30), (30, 36), (54, 62), (70, 110)), 1):
        index[40:60, left:right] = n  # the fourth has its middle right of the border between two cells
    labels = LabelMap(index=index, characters=(0, 5, 5, 7, 8, 9), colours=(0, 1, 1, 1, 1, 1))
    cells = cell_labels(labels.things(2), 2)
    assert [kind.tolist() for kind in cells[2:6]] == [[5, 8, 0, 0], [5, 9, 0, 0], [7, 0, 0, 0], [0, 0, 0, 0]]
    third = cell_labels(labels.things(1, (28.0, 0.0, 40.0, 112.0)), 1)
    assert [kind.item() for kind in third[2:6]] == [7, 0, 0, 0]
    assert not third.shape.any()


def test_a_low_contrast_object_is_outlined():
    rng = random.Random(0)
    for _ in range(200):
        scene = plan_scene([Wanted(shape="circle", colour="white")], (112, 112), rng)
        thing = scene.objects[0]
        assert thing.stroke or colours.distance(thing.rgb, scene.base) >= pictures.MIN_CONTRAST


@pytest.mark.usefixtures("fonts_installed")
def test_every_font_has_every_character():
    for split in ("train", "heldout"):
        for script, latin in (("latin", False), ("chinese", False), ("chinese", True)):
            characters = words.CHARACTERS if script == "chinese" else words.DIGITS + words.LETTERS
            if script == "chinese" and not latin:
                characters = [c for c in characters if not c.isascii()]
            for name in set(fonts.font_names(split, script, latin=latin)):
                font = fonts.load_font(name, 20)
                if isinstance(font, ImageFont.FreeTypeFont):
                    blank = bytes(font.getmask("\U000e0fff"))
                    assert [c for c in characters if bytes(font.getmask(c)) == blank] == [], name


@pytest.mark.usefixtures("fonts_installed")
@pytest.mark.parametrize("lines", [("8305",), ("hello world", "stop"), ("打开窗户", "谢谢")])
def test_text_lies_inside_and_each_character_is_labelled(lines):
    for seed in range(20):
        rng = random.Random(seed)
        picture = draw_text(lines, (168, 140), "train", rng, np.random.default_rng(seed))
        expected = {words.CHARACTER_CLASS[c] for line in lines for c in line if c != " "}
        assert set(picture.labels.characters) - {0} == expected
        index = picture.labels.index
        assert set(np.unique(index)) >= set(range(1, len(picture.labels.characters)))
        assert not index[0].any()
        assert not index[:, 0].any()
        assert not index[:, -1].any()
