"""Videos: which frames come out, in which budget, and what happens to files that are none."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from drawn_videos import encode, moving, square
from tianquan.errors import MediaError, ParameterError
from tianquan.processing.frames import VideoFrame, frame_cost, group_frames
from tianquan.request import MediaPolicy, VideoPolicy


@pytest.fixture
def load(processor):
    def load(source, **policy):
        max_pixels = policy.pop("max_pixels", MediaPolicy.max_pixels)
        media = MediaPolicy(video=replace(VideoPolicy(max_tokens=100_000), **policy), max_pixels=max_pixels)
        return processor.load_video(source, media)

    return load


def place(video, n):
    """Return where the square is, from 0 to 1 across the picture."""
    pixels = video.frames[n].slices[0].astype(float)
    pixels = pixels[0] if pixels.ndim == 4 else pixels
    weights = np.clip(pixels[..., 0] - pixels[..., 2] - 60, 0, None).sum(axis=0)
    return float((weights * np.arange(len(weights))).sum() / weights.sum() / len(weights))


CONTAINERS = [
    *(("mp4", "libx264"), ("mov", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx"), ("mpegts", "libx264")),
    *(("avi", "mpeg4"), ("avi", "mjpeg"), ("gif", "gif")),
]


@pytest.mark.parametrize(("container", "codec"), CONTAINERS)
def test_frames_come_in_order_with_their_times(load, container, codec):
    video = load(encode(moving(40), container=container, codec=codec))
    assert video.times[0] == 0.0
    assert np.allclose(np.diff(video.times), 0.25, atol=0.11)  # 4 a second of a video with 10
    expected = [8 / 96 + t / 3.9 * 80 / 96 for t in video.times]
    assert [place(video, n) for n in range(len(video.times))] == pytest.approx(expected, abs=0.04)


def test_few_frames_of_a_long_video_are_found_without_decoding_all(load):
    """Key frames every 10 frames; the wanted frames are 10 s apart."""
    video = load(encode(moving(600), gop=10), max_frames=6)
    assert len(video.times) == 6
    assert np.allclose(video.times, np.arange(6) * 10.0, atol=2.6)
    expected = [8 / 96 + t / 59.9 * 80 / 96 for t in video.times]
    assert [place(video, n) for n in range(6)] == pytest.approx(expected, abs=0.03)


def test_a_change_of_colour_alone_is_a_change(load):
    red, green = square(20), square(20)
    red[24:40, 20:36], green[24:40, 20:36] = (200, 40, 40), (30, 122, 60)  # equally dark
    levels = [Image.fromarray(picture).convert("L").getpixel((25, 30)) for picture in (red, green)]
    assert abs(levels[0] - levels[1]) < 2
    times = load(encode([red] * 10 + [green] * 10)).times
    assert times[:2] == pytest.approx((0.0, 1.0), abs=0.11)  # the codec may take another frame to get it right


def test_rate(load):
    video = load(encode(moving(50)), sampling="rate", frames_per_second=2.0)
    assert len(video.times) == 10
    assert np.allclose(video.times, np.arange(10) * 0.5, atol=0.13)


def test_too_many_frames_are_thinned_evenly(load):
    video = load(encode(moving(50)), sampling="rate", frames_per_second=10.0, max_frames=16)
    assert 8 <= len(video.times) <= 16
    assert np.diff(video.times) == pytest.approx(np.diff(video.times)[0], abs=0.11)


def test_scenes(load):
    scenes = [square(5)] * 15 + [square(60)] * 15 + [square(60, level=90)] * 15
    video = load(encode(scenes), sampling="scenes")
    assert np.allclose(video.times, [0.0, 1.5, 3.0], atol=0.26)


def test_what_does_not_change_is_seen_once(load):
    assert load(encode([square(20)] * 40)).times == (0.0,)


def test_variable_frame_rate(load):
    video = load(encode(moving(12), times=lambda n: n if n < 6 else 40 + n))  # a pause of 4 s
    assert video.times[-1] == pytest.approx(5.1, abs=0.2)
    assert all(later > earlier for earlier, later in zip(video.times, video.times[1:], strict=False))


def test_a_last_picture_that_stands_for_long_is_no_cut(load):
    """A slide show: what ends the file is the length of its last slide, not a frame."""
    assert load(encode(moving(3), times=lambda n: 50 * n, last_stands=80)).times == pytest.approx((0.0, 5.0, 10.0))


@pytest.mark.parametrize(("count", "rate"), [(1, 1), (2, 1), (4, 1), (6, 2)])
def test_few_frames_a_second(load, count, rate):
    """All packets come before the first frame is decoded."""
    times = load(encode(moving(count), rate=rate), frames_per_second=10.0).times
    assert times == pytest.approx(tuple(n / rate for n in range(count)))


def test_a_gif_of_pillow(load):
    """Pillow leaves equal frames out and lets the one before stand for longer."""
    slides = [Image.fromarray(picture) for picture in [square(5)] * 20 + [square(60)] * 40]
    file = io.BytesIO()
    slides[0].save(file, "GIF", save_all=True, append_images=slides[1:], duration=100)
    assert load(file.getvalue()).times == pytest.approx((0.0, 2.0), abs=0.1)
    assert load(file.getvalue() + bytes(5)).times == pytest.approx((0.0, 2.0), abs=0.1)


def test_frames_in_memory_equal_a_file_but_for_the_codec(load):
    video = load((np.stack(moving(8)), 4.0))
    assert video.times == (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert place(video, 7) == pytest.approx(88 / 96, abs=0.02)


def test_a_video_with_a_rotation_is_upright(load):
    upright = load(encode(moving(3), container="mp4"))
    data = bytearray(encode(moving(3), container="mp4"))
    at = data.rindex(b"tkhd") + 4 + 40  # matrix of the track header: a quarter turn clockwise
    matrix = np.array([0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000], ">i4")
    data[at : at + 36] = matrix.tobytes()
    turned = load(bytes(data))
    height, width = turned.frames[0].slices[0].shape[:2]
    assert height > width
    assert upright.frames[0].slices[0].shape[:2] == (width, height)
    rows = turned.frames[0].slices[0][..., 0].astype(int).max(axis=1)
    assert rows[: height // 4].max() > 150  # the left side is on top now
    assert rows[height // 2 :].max() < 150


CORNERS = np.full((64, 96, 3), 30, np.uint8)
CORNERS[:24, :24] = 230  # top left


@pytest.mark.parametrize(
    ("a", "b", "c", "d", "corner"),
    [
        (1, 0, 0, 1, (0, 0)),
        (-1, 0, 0, 1, (0, -1)),  # mirrored
        (1, 0, 0, -1, (-1, 0)),
        (-1, 0, 0, -1, (-1, -1)),
        (0, 1, 1, 0, (0, 0)),  # about the diagonal
        (0, 1, -1, 0, (0, -1)),  # a quarter turn clockwise
        (0, -1, 1, 0, (-1, 0)),
        (0, -1, -1, 0, (-1, -1)),
    ],
)
def test_turned_and_mirrored_videos_are_upright(load, a, b, c, d, corner):
    data = bytearray(encode([CORNERS] * 3, container="mp4"))
    at = data.rindex(b"tkhd") + 4 + 40
    data[at : at + 36] = (np.array([a, b, 0, c, d, 0, 0, 0, 1 << 14]) << 16).astype(">i4").tobytes()
    pixels = load(bytes(data)).frames[0].slices[0][..., 0].astype(int)
    assert (pixels.shape[0] > pixels.shape[1]) == (a == 0)
    for place in itertools.product((0, -1), repeat=2):
        assert (pixels[place] > 120) == (place == corner), place


@pytest.mark.parametrize("gop", [12, 40])
def test_parts_that_were_joined_go_on(load, gop):
    """As `cat a.ts b.ts` does it, and a camera that starts again: the second begins at 0 again."""
    parts = [
        encode([square(2 * n, level=level) for n in range(40)], container="mpegts", gop=gop) for level in (80, 160, 240)
    ]
    video = load(b"".join(parts), frames_per_second=1.0, max_tokens=10**6)
    assert np.diff(video.times).min() > 0.5
    assert np.diff(video.times).max() < 1.5
    assert 10 < video.times[-1] < 12
    levels = [round(int(frame.slices[0][..., 0].max()) / 80) for frame in video.frames]
    assert levels == [1 + int((time + 0.05) / 4) for time in video.times]


def test_the_sound_track_is_heard_when_asked(load):
    data = encode(moving(20), tone=True)
    assert load(data).waveforms == ()
    (waveform,) = load(data, with_sound=True).waveforms
    assert len(waveform) == pytest.approx(32000, abs=3000)


@pytest.mark.parametrize("container", ["matroska", "mpegts", "avi"])
def test_the_sound_track_of_other_containers(load, container):
    codec = "mpeg4" if container == "avi" else "libx264"
    (waveform,) = load(encode(moving(20), container=container, codec=codec, tone=True), with_sound=True).waveforms
    assert len(waveform) == pytest.approx(32000, abs=3000)


def with_sound(container, num_pictures, seconds, *, sound_from=0.0, pictures_from=0):
    """A video of 10 frames a second whose tracks are not equally long."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        pictures = moving(num_pictures)
        height, width = pictures[0].shape[:2]
        stream = output.add_stream("mpeg4" if container == "avi" else "libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        sound = output.add_stream("aac", rate=16000, layout="mono")
        packets = []
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n + 10 * pictures_from, Fraction(1, 10)
            packets += stream.encode(frame)
        packets += stream.encode()
        for start in range(0, int(16000 * seconds), 1024):
            block = av.AudioFrame.from_ndarray(np.full((1, 1024), 900, np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16000, start + int(16000 * sound_from), Fraction(1, 16000)
            packets += sound.encode(block)
        packets += sound.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("container", ["matroska", "avi", "mov", "mpegts"])
def test_tracks_need_not_be_equally_long(load, container):
    for num_pictures, seconds in ((60, 4.0), (40, 6.0)):
        video = load(with_sound(container, num_pictures, seconds), with_sound=True)
        assert len(video.waveforms[0]) == pytest.approx(16000 * seconds, abs=4000)
        assert len(video.frames) > 2


def test_tracks_may_begin_late(load):
    assert load(with_sound("matroska", 60, 4.0, sound_from=2.0), with_sound=True).waveforms
    assert len(load(with_sound("matroska", 60, 8.0, pictures_from=2)).frames) > 2


def test_a_video_without_sound_is_refused_where_its_sound_is_wanted(load):
    with pytest.raises(MediaError, match="there is no sound in the file"):
        load(encode(moving(20)), with_sound=True)


# Budget ---------------------------------------------------------------------------------------------------------
def test_one_budget_decides(processor, load):
    cost = frame_cost(processor.settings.image)
    data = encode([square(40, level=80 + 2 * n) for n in range(80)])  # it lights up slowly
    free = load(data, max_frames=24)
    assert all(image.num_video_frames == 1 for image in free.frames)
    tight = load(data, max_frames=24, max_tokens=8 * cost)
    assert len(tight.frames) <= 8
    assert sum(image.num_video_frames for image in tight.frames) > 8  # frames share tokens
    assert max(image.num_video_frames for image in tight.frames) <= 4
    alone = load(data, max_frames=24, max_tokens=8 * cost, max_merge=1)
    assert len(alone.frames) == 8
    assert all(image.num_video_frames == 1 for image in alone.frames)


def test_the_sound_track_counts(processor, load):
    data = encode(moving(20), tone=True)
    with pytest.raises(ParameterError, match="leaves no room for a frame"):
        load(data, with_sound=True, max_tokens=frame_cost(processor.settings.image))


def test_groups_keep_what_differs_apart():
    still, moved = square(5), square(70)
    frames = [VideoFrame.of(float(n), still if n < 5 else moved) for n in range(10)]
    groups = group_frames(frames, 4, 4)
    assert [len(group) for group in groups] == [4, 1, 4, 1] or all(
        len({float(frame.pixels.mean()) for frame in group}) == 1 for group in groups
    )
    assert all(not (group[0].time < 5 <= group[-1].time) for group in groups)


def test_usage_tells_what_a_video_cost(processor):
    content = {"text": "what moves?", "video": (np.stack(moving(8)), 4.0)}
    policy = MediaPolicy(video=VideoPolicy(max_tokens=4 * frame_cost(processor.settings.image)))
    prompt = processor([{"role": "user", "content": content}], policy)
    per_slice = processor.settings.image.tokens_per_slice
    assert prompt.num_video_tokens == len(prompt.images) * per_slice <= 4 * per_slice
    assert prompt.num_video_frames >= len(prompt.images)
    assert prompt.num_image_tokens == 0


def test_pictures_sound_and_videos_side_by_side(processor):
    tone = (np.zeros(16000, np.float32), 16000)
    video = (np.stack(moving(2)), 1.0)
    content = {"text": "all", "image": [square(0), square(9)], "audio": tone, "video": [video, video]}
    prompt = processor([{"role": "user", "content": content}])
    assert [image.num_video_frames for image in prompt.images] == [0, 0, 1, 1, 1, 1]
    assert len(prompt.audios) == 1
    assert [span.index for span in prompt.spans if span.kind == "image"] == list(range(6))
    assert prompt.images[2].digest == prompt.images[4].digest  # equal frames are encoded once


# Files that are none --------------------------------------------------------------------------------------------
def no_frames() -> bytes:
    """Return a video whose frames are all zero bytes."""
    data = encode(moving(5), container="matroska")
    cluster = data.index(b"\x1f\x43\xb6\x75")
    return data[:cluster]


def sound_only() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        block.sample_rate = 16000
        output.mux(stream.encode(block))
        output.mux(stream.encode())
    return file.getvalue()


WHOLE = encode(moving(60), container="matroska")
HOSTILE = {
    "empty": (b"", "empty"),
    "text": (b"hello " * 100, "format not known"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
    "avi": (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(100), "damaged"),
    "windows_media": (b"\x30\x26\xb2\x75" + bytes(100), "Windows Media"),
    "cut_avi": (encode(moving(20), container="avi", codec="mjpeg")[:-900], "ends after"),
    "cut_gif": (encode(moving(20), container="gif", codec="gif")[:-100], "cut short"),
    "gif_of_noise": (b"GIF89a" + np.random.default_rng(1).bytes(3000) + b";", "damaged|not one frame|long, more than"),
    "no_index": (encode(moving(60))[:-1500], "damaged|cut short|not one frame"),
    "cut": (WHOLE[: len(WHOLE) * 2 // 3], "cut short|damaged"),
    "zero_frames": (no_frames(), "damaged|not one frame|no picture track"),
    "sound_only": (sound_only(), "no picture track"),
    "noise": (WHOLE[:2000] + np.random.default_rng(0).bytes(len(WHOLE) - 2000), "damaged|not one frame|cut short"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_unusable_files_are_refused_in_one_line(load, name, tmp_path):
    data, reason = HOSTILE[name]
    path = tmp_path / f"{name}.mp4"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(MediaError, match=reason) as caught:
            load(source)
        assert str(caught.value).isprintable()
        assert str(tmp_path) not in str(caught.value)


def test_sizes_and_lengths_have_caps(load):
    data = encode(moving(60))
    with pytest.raises(MediaError, match="more than the cap of 1000"):
        load(data, max_pixels=1000)
    with pytest.raises(MediaError, match="long, more than the cap of 3"):
        load(data, max_seconds=3.0)
    stamped = encode(moving(6), container="matroska", times=lambda n: n if n < 5 else 10**7)  # a jump of days
    with pytest.raises(MediaError, match="long, more than the cap"):
        load(stamped)


def test_a_small_file_that_claims_huge_frames(load):
    data = bytearray(encode(moving(3), container="gif", codec="gif"))
    data[6:10] = (9000).to_bytes(2, "little") * 2  # its canvas; 81 million pixels, fewer than a picture may have
    with pytest.raises(MediaError, match="9000 x 9000, more than the cap"):
        load(bytes(data))


@pytest.mark.parametrize(
    "policy",
    [
        {"max_frames": 0},
        {"frames_per_second": 0.0},
        {"max_merge": 0},
        {"frame_pixels": 1},
        {"sampling": "some"},
        {"max_tokens": 3},
    ],
)
def test_policies_out_of_range(load, policy):
    with pytest.raises(ParameterError, match="expected"):
        load((moving(2), 1.0), **policy)


@pytest.mark.parametrize(
    "source", [([], 1.0), (moving(2), 0.0), (moving(2), "x"), ("ab", 1.0), ([5], 1.0), (np.zeros((2, 4, 4)), 1.0)]
)
def test_frames_in_memory_of_the_wrong_form(load, source):
    with pytest.raises(MediaError):
        load(source)


def test_progress_is_told(processor):
    seen = []
    processor.load_video(encode(moving(40)), MediaPolicy(), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == pytest.approx(3.9, abs=0.3)  # packets come in decoding order
    assert seen[-1][1] == pytest.approx(4.0)
