"""Watching a video while it is written."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest

from drawn_videos import encode, moving
from tianquan import SamplingParams
from tianquan.errors import MediaError, ParameterError
from tianquan.processing.frames import frame_cost
from tianquan.request import MediaPolicy, VideoPolicy
from tianquan.watch import Watch

SHORT = SamplingParams(temperature=0.0, max_tokens=1)


def policy(llm, frames, **video):
    cost = frame_cost(llm.processor.settings.image)
    return MediaPolicy(video=VideoPolicy(max_tokens=frames * cost, **video))


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_file_that_grows_is_asked_about_at_any_time(reference_llm, tmp_path):
    grain = np.random.default_rng(0).integers(0, 60, (60, *moving(1)[0].shape), np.uint8)  # some 2 KB a frame
    data = encode(np.stack(moving(60)) // 2 + grain, container="mpegts", gop=10)
    path = tmp_path / "camera.ts"
    cut = len(data) // 2 // 188 * 188
    path.write_bytes(data[:cut])
    with Watch(reference_llm, path, policy(reference_llm, 20)) as watch:
        wait_for(lambda: watch.num_frames >= 2)
        first = watch.ask("what moves?", SHORT)
        assert 1 <= first.usage.video_frames < 6
        with path.open("ab") as file:
            file.write(data[cut:])
        wait_for(lambda: watch.num_frames >= 5)
        second = watch.ask("and now?", SHORT)
        assert second.usage.video_frames > first.usage.video_frames
        assert second.usage.cached_tokens > 3 * 64  # all frames but, perhaps, the one that has just come
    watch.wait()
    assert watch.error is None


def test_the_budget_bounds_a_pipe(reference_llm):
    watch = Watch(reference_llm, io.BytesIO(encode(moving(60), container="matroska", gop=5)), policy(reference_llm, 3))
    watch.wait()
    assert watch.error is None
    assert 2 <= watch.num_frames <= 3
    usage = watch.ask("what moved?", SHORT).usage
    assert usage.video_frames == watch.num_frames


class Slow(io.BytesIO):
    """A pipe that gives a little at a time, as a camera does."""

    def read(self, size=-1):
        time.sleep(0.01)
        return super().read(min(500, size) if size > 0 else 500)


def test_a_pipe_is_left_when_it_is_closed(reference_llm):
    grain = np.random.default_rng(0).integers(0, 60, (300, *moving(1)[0].shape), np.uint8)
    data = encode(np.stack(moving(300)) // 2 + grain, container="mpegts", gop=10)
    with Watch(reference_llm, Slow(data), policy(reference_llm, 40)) as watch:
        wait_for(lambda: watch.num_frames >= 1)
    frames = watch.num_frames
    watch.wait()
    assert watch.num_frames <= frames + 2
    assert watch.error is None
    assert watch.ask("what moved?", SHORT).usage.video_frames == watch.num_frames


def test_a_file_that_fails_is_told(reference_llm):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    watch = Watch(reference_llm, Failing(), policy(reference_llm, 3))
    watch.wait()
    with pytest.raises(MediaError, match="Input/output error"):
        watch.ask("what?", SHORT)


def test_what_fails_later_is_told_as_well(reference_llm):
    """What was seen before is not everything so far."""
    data = encode(moving(60), container="mpegts", gop=5)

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > len(data) * 3 // 4:
                raise OSError(5, "Input/output error")
            return super().read(size)

    watch = Watch(reference_llm, Failing(data), policy(reference_llm, 10))
    watch.wait()
    assert watch.num_frames > 0
    with pytest.raises(MediaError, match="Input/output error"):
        watch.ask("what?", SHORT)


def test_a_stream_may_be_longer_than_a_file_may_be(reference_llm):
    data = encode(moving(60), container="mpegts", gop=5)
    watch = Watch(reference_llm, io.BytesIO(data), policy(reference_llm, 3, max_seconds=1.0, max_decoded_pixels=10_000))
    watch.wait()
    assert watch.error is None
    assert watch.ask("what moved?", SHORT).usage.video_frames >= 2


def test_what_is_no_video_is_told_when_asked(reference_llm, tmp_path):
    with pytest.raises(MediaError, match="does not begin as a video"):
        Watch(reference_llm, io.BytesIO(b"hello" * 1000)).ask("what?", SHORT)
    with pytest.raises(MediaError, match="cannot be opened"):
        Watch(reference_llm, tmp_path / "missing.ts")
    with pytest.raises(ParameterError, match="without its sound"):
        Watch(reference_llm, io.BytesIO(b""), policy(reference_llm, 3, with_sound=True))
