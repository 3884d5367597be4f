"""Pictures: opened from every format of the allow-list, slices equal to the conformance cases, patches."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from tianquan.errors import MediaError, ParameterError
from tianquan.processing.image import ImageSettings, decoded_rgb, patchify, slice_image, to_rgb
from tianquan.processing.media import load_image, sniff
from tianquan.request import ImagePolicy, SliceGrid

CONFORMANCE = Path(__file__).parents[1] / "conformance"
MEDIA = CONFORMANCE / "media"
CASES = [json.loads(path.read_text("utf-8")) for path in sorted((CONFORMANCE / "cases").glob("*.json"))]
IMAGES = [(case["name"], image) for case in CASES for image in case["images"]]
SETTINGS = ImageSettings(scale_resolution=448, patch_size=14, max_slices=9, slice_mode=True, tokens_per_slice=64)
MAX_PIXELS = 100_000_000


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    ramp[: height // 2, :, 1] = 0
    return Image.fromarray(ramp.astype(np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png_header(width: int, height: int, colour: int = 2, depth: int = 8) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"\0" * min(width * height, 1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# Files ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG", "WEBP", "MPO"])
def test_every_image_format_opens(kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(picture(), kind, **options)
    image = load_image(data, MAX_PIXELS)
    assert image.mode == "RGB"
    assert image.size == (40, 30)
    tolerance = {"JPEG": 20, "MPO": 20, "GIF": 20}.get(kind, 0)  # lossy, or 256 colours
    difference = np.abs(np.asarray(image, int) - np.asarray(picture(), int))
    assert difference.mean() <= tolerance
    path = tmp_path / "picture"
    path.write_bytes(data)
    assert load_image(path, MAX_PIXELS).tobytes() == image.tobytes()
    assert sniff(data) == f"image/{'jpeg' if kind == 'MPO' else kind.lower()}"


def test_conformance_jpeg_equals_plain_pillow():
    assert load_image(MEDIA / "sample_image.jpg", MAX_PIXELS).tobytes() == (
        Image.open(MEDIA / "sample_image.jpg").convert("RGB").tobytes()
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 250  # the top left quarter is bright
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(saved(Image.fromarray(stored), kind, exif=exif, quality=95), MAX_PIXELS)
    assert np.abs(np.asarray(image, int) - upright.astype(int)).mean() < 8


def test_broken_exif_leaves_the_picture_as_stored():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells about the EXIF block
        image = load_image(saved(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), MAX_PIXELS)
    assert image.size == (40, 30)


def test_transparency_becomes_white():
    rgba = picture().convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize((40, 30)))
    expected = np.asarray(rgba.convert("RGB"), float)
    alpha = np.asarray(rgba.getchannel("A"), float)[..., None] / 255
    expected = expected * alpha + 255 * (1 - alpha)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        pixels = np.asarray(load_image(saved(rgba, kind, **options), MAX_PIXELS), float)
        assert np.abs(pixels - expected).max() <= 1.5
    grey = load_image(saved(rgba.convert("LA"), "PNG"), MAX_PIXELS)
    assert min(grey.getpixel((39, 0))) >= 250


def png(samples: bytes, width: int, depth: int, colour: int, transparent: bytes) -> bytes:
    """One row of raw samples, and the value that is transparent."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)), (b"tRNS", transparent))
    chunks += ((b"IDAT", zlib.compress(b"\0" + samples)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("depth", "colour", "samples", "transparent", "wanted"),
    [
        (1, 0, b"\x40", b"\0\0", [255, 255]),
        (2, 0, b"\x60", b"\0\1", [255, 170]),
        (4, 0, b"\x3f", b"\0\3", [255, 255]),
        (4, 0, b"\x31", b"\0\1", [51, 255]),
        (8, 0, b"\x03\x33", b"\0\3", [255, 51]),
        (16, 0, b"\x12\x34\x34\x12", b"\x12\x34", [255, 52]),
        (16, 2, b"\x12\x34\x56\x78\x9a\xbc" + b"\x34\0\x78\0\xbc\0", b"\x12\x34\x56\x78\x9a\xbc", [255, 52]),
        (8, 2, b"\1\2\3\4\5\6", b"\0\1\0\2\0\3", [255, 4]),
    ],
)
def test_a_transparent_colour_of_any_depth(depth, colour, samples, transparent, wanted):
    data = png(samples, 2, depth, colour, transparent)
    for image in (load_image(data, MAX_PIXELS), decoded_rgb(Image.open(io.BytesIO(data)), MAX_PIXELS)):
        assert [image.getpixel((x, 0))[0] for x in range(2)] == wanted


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency(kind):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    pixels = np.asarray(load_image(saved(image, kind, transparency=0), MAX_PIXELS))
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    assert tuple(pixels[1, 1]) == (0, 0, 255)


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("P", "BMP"), ("CMYK", "JPEG"), ("L", "JPEG")])
def test_other_modes(mode, kind):
    image = picture(mode=mode)
    loaded = load_image(saved(image, kind), MAX_PIXELS)
    assert loaded.mode == "RGB"
    assert np.abs(np.asarray(loaded, int) - np.asarray(image.convert("RGB"), int)).mean() < 8


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    pixels = np.asarray(load_image(saved(Image.fromarray(values), "PNG"), MAX_PIXELS))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data, MAX_PIXELS).getpixel((0, 0)) == (255, 0, 0)


def test_pixel_cap_comes_from_the_header():
    with pytest.raises(MediaError, match=r"20000 x 20000 .* cap of 100000000; make it smaller"):
        load_image(png_header(20_000, 20_000), MAX_PIXELS)
    with pytest.raises(MediaError, match="65535 x 65535"):
        load_image(b"GIF89a" + b"\xff" * 4 + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;", MAX_PIXELS)
    canvas = b"VP8X" + struct.pack("<II", 10, 0) + b"\xff\x7f\0" * 2
    with pytest.raises(MediaError):
        load_image(b"RIFF" + struct.pack("<I", len(canvas) + 4) + b"WEBP" + canvas, MAX_PIXELS)
    assert load_image(saved(picture(), "PNG"), 1200).size == (40, 30)
    with pytest.raises(MediaError):
        load_image(saved(picture(), "PNG"), 1199)


def test_pillows_own_pixel_limit_stays_out_of_the_way():
    data = saved(Image.new("1", (20_000, 10_000)), "PNG")  # 200 megapixels: Pillow's own limit is an error at 179
    with pytest.raises(MediaError, match="more than the cap"):
        load_image(data, MAX_PIXELS)
    data = saved(Image.new("1", (9_999, 9_999)), "PNG")  # 100 megapixels: Pillow warns from 89
    assert load_image(data, MAX_PIXELS).size == (9_999, 9_999)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_truncated_pictures_are_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = saved(Image.fromarray(noise), kind)
    for length in (len(data) // 2, len(data) * 9 // 10, 30, 13):
        with pytest.raises(MediaError):
            load_image(data[:length], MAX_PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_damaged_pictures_give_a_picture_or_a_media_error(kind):
    random = np.random.default_rng(1)
    data = saved(picture(), kind)
    for _ in range(60):
        bytes_ = bytearray(data)
        for place in random.integers(0, len(data), 4):
            bytes_[place] = random.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(MediaError):
                assert load_image(bytes(bytes_), 10_000_000).mode == "RGB"


def test_floating_point_pixels_are_refused():
    with pytest.raises(MediaError, match="no stated range"):
        to_rgb(Image.new("F", (4, 4)))
    assert to_rgb(Image.new("I", (4, 4), 0xFFFF)).getpixel((0, 0)) == (255, 255, 255)


# Slices -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "expected"), IMAGES, ids=[f"{name}-{image['file']}" for name, image in IMAGES])
def test_slices_of_the_conformance_cases(name, expected):
    image = load_image(MEDIA / expected["file"], MAX_PIXELS)
    assert list(image.size) == expected["size"]
    cut = slice_image(image, SETTINGS, ImagePolicy())
    assert cut.grid == SliceGrid(*(expected["grid_cols_rows"] or (0, 0)))
    assert [[tile.shape[1], tile.shape[0]] for tile in cut.slices] == expected["slices_width_height"]
    sums = [int(tile.sum(dtype=np.int64)) for tile in cut.slices]
    # The suite was made with Pillow 13, whose bicubic rounds a few pixels of a million differently from 12's.
    tolerance = 0 if int(PIL.__version__.split(".")[0]) >= 13 else 1e-5
    assert sums == pytest.approx(expected["slice_pixel_sums"], rel=tolerance, abs=0)


def test_slices_are_rows_of_the_resized_picture():
    image = picture(1200, 900)
    cut = slice_image(image, SETTINGS, ImagePolicy())
    grid = cut.grid
    height, width, _ = cut.slices[1].shape
    resized = np.asarray(image.resize((width * grid.cols, height * grid.rows), Image.Resampling.BICUBIC))
    rows = [np.hstack(cut.slices[1 + row * grid.cols :][: grid.cols]) for row in range(grid.rows)]
    assert (np.vstack(rows) == resized).all()
    assert all(tile.dtype == np.uint8 and tile.flags.c_contiguous for tile in cut.slices)


def test_digest_tells_pictures_apart():
    image = picture(600, 500)
    digest = slice_image(image, SETTINGS, ImagePolicy()).digest
    assert slice_image(image.copy(), SETTINGS, ImagePolicy()).digest == digest
    assert slice_image(image, SETTINGS, ImagePolicy(max_slices=0)).digest != digest
    image.putpixel((300, 250), (1, 2, 3))
    assert slice_image(image, SETTINGS, ImagePolicy()).digest != digest
    shapes = [slice_image(Image.new("RGB", size), SETTINGS, ImagePolicy()).digest for size in ((200, 100), (100, 200))]
    assert shapes[0] != shapes[1]


def test_policy_limits_the_slices():
    image = picture(2000, 2000)
    overview = slice_image(image, SETTINGS, ImagePolicy(max_slices=0))
    assert overview.grid == SliceGrid(0, 0)
    assert [tile.shape for tile in overview.slices] == [(448, 448, 3)]
    assert len(slice_image(image, SETTINGS, ImagePolicy(max_slices=4)).slices) == 5
    for tokens, num_slices in ((64, 1), (191, 1), (192, 3), (320, 5), (10_000, 10)):
        cut = slice_image(image, SETTINGS, ImagePolicy(max_image_tokens=tokens))
        assert len(cut.slices) == num_slices
    settings = ImageSettings(scale_resolution=448, patch_size=14, max_slices=9, slice_mode=False, tokens_per_slice=64)
    assert slice_image(image, settings, ImagePolicy()).grid == SliceGrid(0, 0)
    assert slice_image(image, settings, ImagePolicy(max_image_tokens=640)).grid == SliceGrid(0, 0)
    assert len(slice_image(image, settings, ImagePolicy(max_slices=4)).slices) == 5


@pytest.mark.parametrize(
    "policy",
    [
        ImagePolicy(max_slices=-1),
        ImagePolicy(max_slices=10),
        ImagePolicy(max_image_tokens=63),
        ImagePolicy(max_image_tokens=-64),
    ],
)
def test_policy_out_of_range(policy):
    with pytest.raises(ParameterError, match="expected"):
        slice_image(picture(), SETTINGS, policy)


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000), (2, 3), (13, 14)])
def test_extreme_shapes(size):
    cut = slice_image(Image.new("RGB", size), SETTINGS, ImagePolicy())
    assert all(min(tile.shape[:2]) >= 14 for tile in cut.slices)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (300_000, 1), (1, 300_000)])
def test_a_line_of_many_thousand_pixels_is_refused(size):
    with pytest.raises(MediaError, match="too long and thin"):
        slice_image(Image.new("RGB", size), SETTINGS, ImagePolicy())


# Patches ----------------------------------------------------------------------------------------------------
def test_patches_have_the_order_of_a_convolution_weight():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (28, 42, 3), np.uint8)
    weight = random.standard_normal((5, 3, 14, 14))
    patches = patchify(pixels, 14)
    assert patches.shape == (6, 588)
    assert patches.dtype == np.uint8
    product = patches @ weight.reshape(5, -1).T  # (P, 5)
    for row in range(2):
        for col in range(3):
            window = pixels[14 * row : 14 * row + 14, 14 * col : 14 * col + 14].astype(float)
            expected = np.einsum("yxc,ocyx->o", window, weight)
            np.testing.assert_allclose(product[3 * row + col], expected)


# Pictures in memory -----------------------------------------------------------------------------------------
def test_an_array_is_a_picture():
    pixels = np.asarray(picture())
    assert decoded_rgb(pixels, MAX_PIXELS).tobytes() == picture().tobytes()
    assert decoded_rgb(pixels[:, ::-1], MAX_PIXELS).size == (40, 30)


def closed() -> Image.Image:
    image = Image.open(io.BytesIO(saved(picture(), "PNG")))
    image.close()
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((30, 40), np.uint8), "expected .H, W, 3. of uint8"),
        (np.zeros((30, 40, 4), np.uint8), "expected .H, W, 3. of uint8"),
        (np.zeros((30, 40, 3), np.float32), "type float32"),
        (np.zeros((0, 40, 3), np.uint8), "empty .40 x 0"),
        (np.broadcast_to(np.uint8(0), (10_001, 10_000, 3)), "more than the cap"),
        (Image.new("RGB", (0, 0)), "empty .0 x 0"),
        (Image.new("F", (5, 5)), "floating-point"),
        (Image.new("La", (5, 5)), "mode La"),
        (closed(), "closed"),
        (Image.open(io.BytesIO(saved(picture(400, 300), "PNG")[:300])), "cut short"),
    ],
)
def test_pictures_in_memory_that_cannot_be_used(image, message):
    with pytest.raises(MediaError, match=f"^image 2: .*{message}"):
        decoded_rgb(image, MAX_PIXELS, "image 2")


def test_a_damaged_exif_block_prints_nothing():
    data = saved(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    code = (
        "import sys; from tianquan.processing.media import load_image\n"
        "print(load_image(sys.stdin.buffer.read(), 10_000).size)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
    assert done.stderr == b""
    assert done.stdout.strip() == b"(40, 30)"
