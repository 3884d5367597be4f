"""Pictures as the vision encoder takes them: one overview, and slices cut from the enlarged picture.

    n = min(ceil(W H / S^2), M) slices of about S x S; at most one: only the overview.
    Else the grid cols x rows out of n - 1, n, n + 1 cells whose shape is nearest the picture's, by
    |ln(W / H) - ln(cols / rows)|; the picture is resized so that the grid cuts it into equal slices of
    about S^2 pixels, sides multiples of the patch size P. S = 448, M = 9, P = 14 in the official checkpoint.

The arithmetic is that of the original processor (the slicing of MiniCPM-V), Python's round and int included:
the number of tokens depends on it.

Legend: W, H width and height in pixels; P patches.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tianquan.errors import MediaError, ParameterError
from tianquan.request import ImageInput, ImagePolicy, SliceGrid

# Pillow tells about damaged EXIF blocks, which only state an orientation here; `catch_warnings` around the
# decoding would not be safe with threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

Size = tuple[int, int]  # (width, height) in pixels

# A slice has about (S / P)^2 patches (1024) whatever its shape, until its short side is down to one patch.
# Four times that is reached at an aspect ratio of 16 000 : 1. Beyond, attention over one such slice would
# take 16 times the work of an ordinary one, and 64 MB a head if it were stored, for a line no picture is.
MAX_PATCHES = 4 * 1024
_EXIF_ORIENTATION = 0x0112
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # of 8-bit grey, by Pillow's name for a depth
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What the checkpoint's preprocessor_config.json says about pictures."""

    scale_resolution: int  # 448: a slice has about the area of this square
    patch_size: int  # 14
    max_slices: int  # 9, beside the overview
    slice_mode: bool  # False: overviews only
    tokens_per_slice: int  # 64, for the overview as well


@dataclass(frozen=True)
class SlicePlan:
    """How a picture of some size is resized and cut."""

    overview: Size
    grid: SliceGrid  # 0 x 0: the overview only
    resized: Size | None  # what is cut into slices; None with the 0 x 0 grid
    slice: Size | None  # `resized` over the grid


def require_pixels(size: Size, max_pixels: int, label: str = "image") -> None:
    """Raise MediaError when a picture, decoded or not, has more than `max_pixels` pixels."""
    width, height = size
    if width * height > max_pixels:
        raise MediaError(
            f"{label}: the picture has {width} x {height} = {width * height} pixels, more than the cap "
            f"of {max_pixels}; make it smaller or raise max_pixels"
        )


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; unreadable EXIF says nothing about it and leaves the picture as stored."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # a reader of damaged fields raises any type
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def scale_transparent(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG that is not loaded yet to the 8 bits Pillow brings the samples to.

    The file states it in the file's own depth, and Pillow compares it with samples of another. Of 16-bit colour the
    high bytes are compared, which is what Pillow keeps.
    """
    key, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or not tiles:
        return
    depth = tiles[0][3]  # as Pillow names it
    if isinstance(key, int) and depth in _GREY_STEPS:
        image.info["transparency"] = key * _GREY_STEPS[depth]
    elif isinstance(key, tuple) and depth == "RGB;16B":
        image.info["transparency"] = tuple(sample >> 8 for sample in key)


def to_rgb(image: Image.Image, label: str = "image") -> Image.Image:
    """Reduce any pixel mode to RGB: over white where transparent, 16-bit grey scaled to 8 bits.

    16-bit grey keeps its high byte, which is what Pillow does for 16-bit colour (its own conversion of grey
    clips at 255 instead). Mode I is how older Pillow releases open the same files.

    Raises:
        MediaError: the mode is F (floating point).
    """
    if image.mode == "F":
        raise MediaError(f"{label}: floating-point pixels have no stated range; save the picture with 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        samples = np.asarray(image)
        grey = (np.clip(samples, 0, 0xFFFF) >> 8).astype(np.uint8)
        transparent = image.info.get("transparency")  # one grey value, given in 16 bits
        if isinstance(transparent, int):
            grey[samples == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, (255, 255, 255))
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def decoded_rgb(picture: Image.Image | npt.NDArray[Any], max_pixels: int, label: str = "image") -> Image.Image:
    """Bring a picture that is already in memory to what `media.load_image` makes of a file.

    Args:
        picture: of any mode `to_rgb` takes, or an array (H, W, 3) of uint8.
        max_pixels: cap on width * height.
        label: what errors call the picture.

    Raises:
        MediaError: empty, too large, closed, cut short, or of another mode, shape or type.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise MediaError(
                f"{label}: an array of shape {picture.shape} and type {picture.dtype}; expected (H, W, 3) of uint8"
            )
        size = (picture.shape[1], picture.shape[0])
    else:
        size = picture.size
    if min(size) == 0:
        raise MediaError(f"{label}: the picture is empty ({size[0]} x {size[1]} pixels); expected at least one pixel")
    require_pixels(size, max_pixels, label)
    if isinstance(picture, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(picture))
    try:
        scale_transparent(picture)
        picture.load()  # a file opened lazily is read only now
        return to_rgb(turn_upright(picture), label)
    except MediaError:
        raise
    except Exception as error:  # whatever a damaged file or an unusual mode leads to in Pillow
        raise MediaError(
            f"{label}: the picture (mode {picture.mode}) is closed, cut short or of a mode that has no RGB; "
            "open it again or convert it to RGB"
        ) from error


def plan_slices(
    width: int, height: int, scale_resolution: int, patch_size: int, max_slices: int, label: str = "image"
) -> SlicePlan:
    """Decide the overview, the grid and the slice size of a picture.

    Args:
        width: of the picture, at least 1.
        height: likewise.
        scale_resolution: side of the square whose area a slice has.
        patch_size: every side becomes a multiple of it.
        max_slices: most slices beside the overview; 0 and 1 mean the overview only.
        label: what errors call the picture.

    Raises:
        MediaError: so long and thin that one slice takes over 4096 patches.
    """
    assert min(width, height) > 0
    num_slices = min(math.ceil(width * height / scale_resolution**2), max_slices)
    if num_slices <= 1:
        overview = _fit(width, height, scale_resolution, patch_size, upscale=True)
        plan = SlicePlan(overview, SliceGrid(0, 0), None, None)
    else:
        overview = _fit(width, height, scale_resolution, patch_size, upscale=False)
        cols, rows = _nearest_grid(width / height, num_slices, max_slices)
        cell_width = _ensure_multiple(width, cols) / cols
        cell_height = _ensure_multiple(height, rows) / rows
        size = _fit(cell_width, cell_height, scale_resolution, patch_size, upscale=True)
        plan = SlicePlan(overview, SliceGrid(cols, rows), (size[0] * cols, size[1] * rows), size)
    largest = max(side_x * side_y for side_x, side_y in (plan.overview, plan.slice or plan.overview))
    num_patches = largest // patch_size**2
    max_patches = max(MAX_PATCHES, 4 * (scale_resolution // patch_size) ** 2)  # of a checkpoint with larger slices
    if num_patches > max_patches:
        raise MediaError(
            f"{label}: {width} x {height} pixels are too long and thin: one slice would take {num_patches} "
            f"patches, more than {max_patches}; crop it or cut it into pieces"
        )
    return plan


def _ensure_multiple(length: float, unit: int) -> int:
    """Round to the nearest multiple of `unit`, half to even as Python's round, at least one."""
    return max(round(length / unit) * unit, unit)


def _fit(width: float, height: float, scale_resolution: int, patch_size: int, *, upscale: bool) -> Size:
    """Keep the shape, take the area S^2 (pictures that are smaller only if `upscale`), round to patches."""
    if width * height > scale_resolution**2 or upscale:
        ratio = width / height
        height = max(1, int(scale_resolution / math.sqrt(ratio)))
        width = int(height * ratio)
    return _ensure_multiple(width, patch_size), _ensure_multiple(height, patch_size)


def _nearest_grid(ratio: float, num_slices: int, max_slices: int) -> tuple[int, int]:
    """Choose (cols, rows) nearest to the shape width / height = `ratio`; the first of equals wins."""
    grids = [
        (cols, count // cols)
        for count in (num_slices - 1, num_slices, num_slices + 1)
        if 1 < count <= max_slices
        for cols in range(1, count + 1)
        if count % cols == 0
    ]
    return min(grids, key=lambda grid: abs(math.log(ratio) - math.log(grid[0] / grid[1])))


def slice_limit(settings: ImageSettings, policy: ImagePolicy) -> int:
    """Combine the checkpoint's settings and a user's policy into the most slices beside the overview.

    A checkpoint whose `slice_mode` is off shows pictures whole unless slices are asked for, up to its own limit.

    Raises:
        ParameterError: negative or more slices than the checkpoint's, or too few tokens for an overview.
    """
    limit = settings.max_slices if settings.slice_mode else 0
    if policy.max_slices is not None:
        if not 0 <= policy.max_slices <= settings.max_slices:
            raise ParameterError(
                f"max_slices is {policy.max_slices}; expected 0 (overview only) to {settings.max_slices}, the "
                "most this checkpoint was made for"
            )
        limit = policy.max_slices
    if policy.max_image_tokens is not None:
        if policy.max_image_tokens < settings.tokens_per_slice:
            raise ParameterError(
                f"max_image_tokens is {policy.max_image_tokens}; expected at least {settings.tokens_per_slice}, "
                "the cost of a picture's overview"
            )
        limit = min(limit, policy.max_image_tokens // settings.tokens_per_slice - 1)
    return limit


def slice_image(image: Image.Image, settings: ImageSettings, policy: ImagePolicy, label: str = "image") -> ImageInput:
    """Resize and cut a picture.

    Args:
        image: mode RGB, any size.
        settings: the checkpoint's.
        policy: the user's limits.
        label: what errors call the picture.

    Returns:
        The overview, then the slices row by row, each (height, width, 3) uint8.

    Raises:
        MediaError: too long and thin, see `plan_slices`.
        ParameterError: a policy out of range, see `slice_limit`.
    """
    assert image.mode == "RGB"
    max_slices = slice_limit(settings, policy)
    plan = plan_slices(*image.size, settings.scale_resolution, settings.patch_size, max_slices, label)
    slices = [np.array(image.resize(plan.overview, Image.Resampling.BICUBIC))]
    if plan.resized is not None and plan.slice is not None:
        pixels = np.asarray(image.resize(plan.resized, Image.Resampling.BICUBIC))
        width, height = plan.slice
        for top in range(0, plan.resized[1], height):
            for left in range(0, plan.resized[0], width):
                slices.append(pixels[top : top + height, left : left + width].copy())
    return ImageInput(tuple(slices), plan.grid, pixels_digest(slices))


def pixels_digest(slices: Sequence[npt.NDArray[np.uint8]]) -> bytes:
    """Return a digest of pixels and sizes; the slices of equal digests have equal features."""
    digest = hashlib.blake2b(digest_size=32)
    for tile in slices:
        digest.update(repr(tile.shape).encode())
        digest.update(np.ascontiguousarray(tile).data)
    return digest.digest()


def patchify(pixels: npt.NDArray[np.uint8], patch_size: int) -> npt.NDArray[np.uint8]:
    """Cut a slice into flattened patches.

    Args:
        pixels: (height, width, 3), sides multiples of `patch_size`.
        patch_size: side of a patch in pixels.

    Returns:
        (P, 3 * patch_size^2): patches row by row, each in the order of a flattened convolution weight
        (channel, row, column).
    """
    height, width, channels = pixels.shape
    assert height % patch_size == width % patch_size == 0
    rows, cols = height // patch_size, width // patch_size
    cut = pixels.reshape(rows, patch_size, cols, patch_size, channels)
    patches: npt.NDArray[np.uint8] = cut.transpose(0, 2, 4, 1, 3).reshape(rows * cols, -1)
    return patches
