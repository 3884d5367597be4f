"""Spending less on pictures where little is to see: the values of the option `image_detail`.

    full      every slice, every token
    trim      the fewest slices that lose little of the picture's detail; of those, none that is blank or shows what
              another of them shows
    economy   as trim, and the tokens of each slice and of the overview merged to half (models/token_merging.py)

A slice that is left out keeps its place: its borders stay in the prompt, with nothing between them. The overview stays
always, so that no part of the picture is unseen. What is decided here is decided by pixels, before any encoder runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from tianquan.errors import ParameterError
from tianquan.processing.image import ImageSettings, Size, pixels_digest, plan_slices, slice_image, slice_limit
from tianquan.request import ImageDetail, ImageInput, ImagePolicy

BLANK_RANGE = 8  # levels between the darkest and the brightest pixel of a blank slice, in each channel
REPEAT_RANGE = 8  # largest difference of a pixel between slices that show the same
DETAIL_LOSS = 1.5  # levels: mean error of a block's grey that fewer slices may cost; at 6 small digits blurred
COLOUR_LOSS = 3.0  # the same of any of its colours: red on green may be one grey
_BLOCK = 16  # pixels a side

Pixels = npt.NDArray[np.uint8]


def look_at(image: Image.Image, settings: ImageSettings, policy: ImagePolicy, label: str = "image") -> ImageInput:
    """Resize and cut a picture as finely as the policy's `image_detail` says; arguments and errors as `slice_image`."""
    detail = policy.image_detail
    if detail not in get_args(ImageDetail):
        raise ParameterError(f"image_detail is {detail!r}; expected one of {', '.join(get_args(ImageDetail))}")
    if detail == "full":
        return slice_image(image, settings, policy, label)
    fewest = fewest_slices(image, settings, slice_limit(settings, policy), label)
    cut = slice_image(image, settings, replace(policy, max_slices=fewest), label)
    overview, *slices = cut.slices
    is_kept = worth_seeing(slices)
    kept = (overview, *(pixels for pixels, keep in zip(slices, is_kept, strict=True) if keep))
    num_tokens = settings.tokens_per_slice // 2 if detail == "economy" else None
    digest = pixels_digest(kept)
    if num_tokens is not None:
        digest += num_tokens.to_bytes(4, "little")  # features of other tokens
    return replace(cut, slices=kept, digest=digest, is_kept=is_kept, tokens_per_slice=num_tokens)


def fewest_slices(image: Image.Image, settings: ImageSettings, limit: int, label: str) -> int:
    """Return the smallest limit of slices under which no block of the picture loses more than `DETAIL_LOSS`.

    The picture is compared at the size it is cut from under `limit`: what the model would see of it at the most.
    """
    sizes = {n: _resized(image.size, settings, n, label) for n in range(limit + 1)}
    finest = sizes[limit]
    whole = image.resize(finest, Image.Resampling.BICUBIC)
    for n in range(limit):
        if sizes[n] == finest or (n > 0 and sizes[n] == sizes[n - 1]):
            continue
        coarse = image.resize(sizes[n], Image.Resampling.BICUBIC).resize(finest, Image.Resampling.BICUBIC)
        if _largest_loss(whole, coarse, "L") <= DETAIL_LOSS and _largest_loss(whole, coarse, "RGB") <= COLOUR_LOSS:
            return n
    return limit


def _resized(size: Size, settings: ImageSettings, limit: int, label: str) -> Size:
    plan = plan_slices(*size, settings.scale_resolution, settings.patch_size, limit, label)
    return plan.resized or plan.overview


def _largest_loss(whole: Image.Image, coarse: Image.Image, mode: str) -> float:
    """Return the largest mean error of a block, in any channel; what is left at the far edges is a block, too."""
    one, other = (np.asarray(image.convert(mode), np.int16) for image in (whole, coarse))
    error = np.abs(one - other).reshape(*one.shape[:2], -1)
    down, across = (-side % _BLOCK for side in error.shape[:2])
    error = np.pad(error, ((0, down), (0, across), (0, 0)), mode="symmetric")
    height, width, channels = error.shape
    blocks = error.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, channels)
    return float(blocks.mean(axis=(1, 3)).max())


def worth_seeing(slices: list[Pixels]) -> tuple[bool, ...]:
    """Return which slices are neither blank nor the repetition of an earlier one."""
    seen: list[Pixels] = []
    result = []
    for pixels in slices:
        is_blank = int(np.ptp(pixels, axis=(0, 1)).max()) <= BLANK_RANGE
        is_new = not is_blank and not any(_same(pixels, other) for other in seen)
        if is_new:
            seen.append(pixels)
        result.append(is_new)
    return tuple(result)


def _same(a: Pixels, b: Pixels) -> bool:
    return int(np.abs(a.astype(np.int16) - b).max()) <= REPEAT_RANGE
