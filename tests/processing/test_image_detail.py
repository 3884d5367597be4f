"""The option `image_detail`: what is left out, what stays, and that features and prompt agree."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tianquan import SamplingParams
from tianquan.backends.reference import ReferenceOps
from tianquan.errors import ParameterError
from tianquan.models.token_merging import merge_tokens
from tianquan.processing.image import ImageSettings
from tianquan.processing.image_detail import look_at
from tianquan.request import ImagePolicy, MediaPolicy

SETTINGS = ImageSettings(scale_resolution=448, patch_size=14, max_slices=9, slice_mode=True, tokens_per_slice=64)


def page(filled: tuple[int, int, int, int], size: tuple[int, int] = (1344, 1344)) -> Image.Image:
    """Return a white page with lines of small text in one box."""
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = filled
    for n, y in enumerate(range(top, bottom - 10, 14)):
        draw.text((left, y), (f"line {n}: the quick brown fox 0123456789; " * 9)[: (right - left) // 6], fill="black")
    return picture


def cut(picture, detail):
    return look_at(picture, SETTINGS, ImagePolicy(image_detail=detail))


def test_full_is_what_it_always_was():
    image = cut(page((20, 20, 400, 400)), "full")
    assert len(image.slices) == 10
    assert image.is_kept is None
    assert image.tokens_per_slice is None


def test_blank_slices_are_left_out_and_keep_their_place():
    image = cut(page((20, 20, 400, 400)), "trim")
    assert image.is_kept == (True, *[False] * 8)
    assert len(image.slices) == 2
    assert (image.grid.cols, image.grid.rows) == (3, 3)


def test_faint_text_is_no_blank():
    picture = page((20, 20, 400, 400))
    ImageDraw.Draw(picture).text((1100, 1100), "faint", fill=(225, 225, 225))
    assert cut(picture, "trim").is_kept[8]


def test_a_slice_that_repeats_another_is_left_out():
    tile = page((30, 30, 430, 430), (448, 448))
    picture = Image.new("RGB", (1344, 1344))
    for n in range(9):
        picture.paste(tile, (n % 3 * 448, n // 3 * 448))
    assert cut(picture, "trim").is_kept == (True, *[False] * 8)


def test_a_picture_without_detail_gets_fewer_slices():
    small = np.random.default_rng(0).integers(60, 200, (5, 5, 3)).astype(np.uint8)
    blurred = Image.fromarray(small).resize((1344, 1344), Image.Resampling.BICUBIC)
    assert len(cut(blurred, "trim").slices) == 1
    assert len(cut(page((20, 20, 1300, 1300)), "trim").slices) == 10


def test_colours_of_one_grey_are_detail():
    red, green = (235, 0, 0), (0, 120, 0)
    assert Image.new("RGB", (1, 1), red).convert("L").getpixel((0, 0)) == 70
    picture = Image.new("RGB", (1344, 1344), green)
    draw = ImageDraw.Draw(picture)
    for y in range(20, 1300, 14):
        draw.text((20, y), "0123456789 " * 20, fill=red)
    assert len(cut(picture, "trim").slices) == 10


@pytest.mark.parametrize("place", [(40, 1734), (1140, 600), (40, 5)])
def test_a_line_at_an_edge_is_detail(place):
    picture = Image.new("RGB", (1240, 1754), "white")
    ImageDraw.Draw(picture).text(place, "0123456789", fill="black")
    assert cut(picture, "trim").grid.cols > 0


def test_unknown_values_are_refused():
    with pytest.raises(ParameterError, match="expected one of full, trim, economy"):
        cut(page((0, 0, 40, 40)), "less")


def test_digests_tell_what_features_come_out():
    picture = page((20, 20, 400, 400))
    digests = {cut(picture, detail).digest for detail in ("full", "trim", "economy")}
    assert len(digests) == 3
    everywhere = page((20, 20, 1300, 1300))
    assert cut(everywhere, "trim").digest == cut(everywhere, "full").digest  # nothing was left out


@pytest.mark.parametrize(("detail", "tokens"), [("full", 320), ("trim", 128), ("economy", 64)])
def test_prompt_and_features_agree(llm, detail, tokens):
    policy = MediaPolicy(image=ImagePolicy(image_detail=detail))
    content = {"text": "read", "image": page((20, 20, 400, 400), size=(896, 896))}  # four slices
    sampling = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    messages = [{"role": "user", "content": content}]
    answer = llm.chat(messages, media=policy, sampling=sampling)
    assert answer.usage.image_tokens == tokens
    logits = llm.trace(messages, media=policy).logits
    assert answer.token_ids[0] == int(logits[-1].argmax())


def test_merging_keeps_means_and_order():
    ops = ReferenceOps()
    rows = np.arange(8, dtype=np.float32)[:, None] * np.float32([1, 0]) + np.float32([0, 1])
    assert merge_tokens(rows, 8, ops) is rows
    merged = merge_tokens(rows, 4, ops)
    assert merged.shape == (4, 2)
    assert (np.diff(merged[:, 0]) >= 0).all()
    assert merge_tokens(rows, 1, ops) == pytest.approx(rows.mean(axis=0)[None])
    pairs = np.repeat(np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32), 2, axis=0)
    assert np.allclose(merge_tokens(pairs, 4, ops), pairs[::2], atol=1e-6)  # twins become one
