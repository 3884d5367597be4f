"""Slicing and audio counts hold for any size; slicing is re-derived from the contract, step by step."""

from __future__ import annotations

from math import ceil, log, sqrt

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tianquan.processing.audio import MIN_SAMPLES, audio_counts
from tianquan.processing.image import ImageSettings, plan_slices, slice_limit
from tianquan.request import ImagePolicy, SliceGrid

SIDES = st.integers(1, 5000)
LIMITS = st.integers(0, 12)


def ensure(length, unit):
    return max(round(length / unit) * unit, unit)


def fit(width, height, upscale, resolution, patch):
    if width * height > resolution * resolution or upscale:
        ratio = width / height
        height = int(resolution / sqrt(ratio))
        width = int(height * ratio)
    return ensure(width, patch), ensure(height, patch)


def derived(width, height, limit, resolution=448, patch=14):
    """Return (overview, grid, resized), written as loops over the words of the contract."""
    count = min(ceil(width * height / (resolution * resolution)), limit)
    if count <= 1:
        return fit(width, height, True, resolution, patch), (0, 0), None
    candidates = []
    for cells in (count - 1, count, count + 1):
        if cells == 1 or cells > limit:
            continue
        divisor = 1
        while divisor <= cells:
            if cells % divisor == 0:
                candidates.append([divisor, cells // divisor])
            divisor += 1
    best, smallest = [1, 1], float("inf")
    for cols, rows in candidates:
        error = abs(log(width / height) - log(cols / rows))
        if error < smallest:
            best, smallest = [cols, rows], error
    cols, rows = best
    tile = fit(ensure(width, cols) / cols, ensure(height, rows) / rows, True, resolution, patch)
    resized = (tile[0] * cols, tile[1] * rows)
    return fit(width, height, False, resolution, patch), (cols, rows), resized


@given(SIDES, SIDES, LIMITS)
@example(1, 1, 9)
@example(5000, 1, 9)
@example(1, 5000, 9)
@example(5000, 5000, 9)
@example(448, 448, 9)
@example(449, 448, 9)
@settings(max_examples=600)
def test_plan_is_that_of_the_contract(width, height, limit):
    plan = plan_slices(width, height, 448, 14, limit)
    overview, grid, resized = derived(width, height, limit)
    assert (plan.overview, plan.grid, plan.resized) == (overview, SliceGrid(*grid), resized)


@given(SIDES, SIDES, LIMITS, st.sampled_from([(448, 14), (224, 14), (384, 16), (280, 28)]))
@settings(max_examples=300)
def test_plan_invariants(width, height, limit, sizes):
    resolution, patch = sizes
    plan = plan_slices(width, height, resolution, patch, limit)
    cells = plan.grid.cols * plan.grid.rows
    assert cells <= limit
    assert cells != 1
    assert (plan.resized is None) == (plan.slice is None) == (cells == 0)
    for size in (plan.overview, plan.slice or plan.overview):
        assert all(side >= patch and side % patch == 0 for side in size)
    if plan.resized and plan.slice:
        assert plan.resized == (plan.slice[0] * plan.grid.cols, plan.slice[1] * plan.grid.rows)


@given(SIDES, SIDES, st.integers(64, 1000), st.none() | st.integers(0, 9))
@settings(max_examples=200)
def test_token_budget_is_kept_and_used(width, height, tokens, max_slices):
    checkpoint = ImageSettings(scale_resolution=448, patch_size=14, max_slices=9, slice_mode=True, tokens_per_slice=64)
    limit = slice_limit(checkpoint, ImagePolicy(max_slices=max_slices, max_image_tokens=tokens))
    plan = plan_slices(width, height, 448, 14, limit)
    assert (1 + plan.grid.cols * plan.grid.rows) * 64 <= tokens
    assert limit == min(9 if max_slices is None else max_slices, tokens // 64 - 1)


@given(st.integers(0, 600_000))
@example(0)
@example(159)
@example(480_000)
@settings(max_examples=400)
def test_audio_counts_are_those_of_the_convolutions_and_the_pool(num_samples):
    counts = audio_counts(num_samples)
    assert counts.mel_frames == min(num_samples, 480_000) // 160
    halves = [frame for frame in range(counts.mel_frames) if frame % 2 == 0]  # where a stride of 2 lands
    assert counts.encoder_frames == len(halves)
    assert counts.tokens == len(halves) // 2
    assert (counts.tokens > 0) == (num_samples >= MIN_SAMPLES)
    assert counts.tokens <= 750
