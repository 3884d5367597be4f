"""Watching a video that is still coming, a growing file or a pipe, and asking about it at any time.

with Watch(llm, Path("camera.ts")) as watch:
    print(watch.ask("What has happened so far?").text)

A thread reads frames as they arrive. Each new one is encoded, and the keys and values of the conversation's beginning,
all frames so far, are extended by it, so that a question costs its own tokens. The budget of the policy bounds the
frames: when it is full, every second frame of the older half goes. What stays is encoded already; its keys and values
are computed once more, each time the budget is full. The caps of the policy on the length of a video do not apply.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from tianquan.answer import Answer, last
from tianquan.errors import MediaError, ParameterError, TianquanError
from tianquan.processing.frames import (
    DEFAULT_RATE,
    DUPLICATE_CHANGE,
    VideoFrame,
    check_video_policy,
    frame_cost,
)
from tianquan.processing.messages import Message
from tianquan.processing.processor import LoadedMedia
from tianquan.processing.video import open_stream, read_frames
from tianquan.processing.video_input import decoded_video
from tianquan.request import Completion, MediaPolicy, Prompt, SamplingParams

if TYPE_CHECKING:
    from tianquan.llm import LLM

_EXTEND = SamplingParams(temperature=0.0, max_tokens=1)  # the shortest answer; what counts are the keys and values


class Watch:
    """One video being watched. `ask` may be called from any thread.

    Args:
        llm: who watches.
        source: a file that may still grow, or a stream that is read forwards only (MPEG-TS or MKV).
        policy: `video.max_tokens` is the budget; `video.frames_per_second` says how often a frame is looked at, once a
            second by default.

    Raises:
        MediaError: the file cannot be opened, or is no video of the allow-list.
        ParameterError: a value of the policy is out of range, or asks for the sound track.
    """

    def __init__(self, llm: LLM, source: Path | BinaryIO, policy: MediaPolicy | None = None) -> None:
        self._llm, self._policy = llm, policy or MediaPolicy()
        settings, video = llm.processor.settings.image, self._policy.video
        check_video_policy(video, settings)
        if video.with_sound:
            raise ParameterError("a video that is still coming is watched without its sound; leave with_sound off")
        self._room = min(video.max_frames, video.max_tokens // frame_cost(settings))
        self._interval = 1 / (video.frames_per_second or DEFAULT_RATE["rate"])
        self._next_time = 0.0
        self._frames: list[VideoFrame] = []
        self._lock = threading.Lock()  # of the frames
        self._closing = threading.Event()
        self._first = threading.Event()
        self.error: TianquanError | None = None  # why reading ended early
        try:
            self._file = source.open("rb") if isinstance(source, Path) else source
        except OSError as error:
            raise MediaError(f"{source}: cannot be opened ({error.strerror})") from error
        waits = isinstance(source, Path)
        self._thread = threading.Thread(target=self._read, args=(waits,), name="tianquan-watch", daemon=True)
        self._thread.start()

    @property
    def earliest(self) -> float:
        """When the next frame is looked at; see `video.Chooser`."""
        return self._next_time

    @property
    def num_frames(self) -> int:
        """Frames the model sees at the moment."""
        return len(self._frames)

    def ask(self, question: str, sampling: SamplingParams | None = None) -> Completion:
        """Return the answer to a question about everything so far, once there is a first frame.

        Raises:
            MediaError: the video ended, or was closed, before its first frame.
            TianquanError: reading failed, as `error` says.
        """
        return last(self._answer(question, sampling or self._llm.checkpoint.sampling))

    def wait(self) -> None:
        """Wait for the end of the video: of a pipe, or of a file once `close` has said that no more comes."""
        self._thread.join()

    def close(self) -> None:
        """Read a file to its present end, a pipe to the next frame; what was seen can still be asked about."""
        self._closing.set()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Prompts ----------------------------------------------------------------------------------------------
    def _answer(self, question: str, sampling: SamplingParams) -> Answer:
        self._first.wait()
        with self._lock:
            frames = list(self._frames)
        if self.error is not None:  # what was seen is no longer everything so far
            raise self.error
        if not frames:
            raise MediaError("the video ended before its first frame; there is nothing to ask about")
        return self._llm.answer(self._prompt(question, frames), sampling)

    def _prompt(self, question: str, frames: list[VideoFrame]) -> Prompt:
        turn = Message("user", question, videos=(b"",))  # the template asks whether there is one, not what it is
        media = LoadedMedia((), (), (decoded_video([[frame] for frame in frames]),), ((),))
        return self._llm.processor.assemble([turn], media)

    # Reading ----------------------------------------------------------------------------------------------
    def _read(self, waits: bool) -> None:
        is_open: Callable[[], bool] = (lambda: not self._closing.is_set()) if waits else (lambda: False)
        settings, policy = self._llm.processor.settings.image, self._policy
        try:
            opened = open_stream(self._file, "the video", is_open)
            for frame in read_frames(opened, lambda seconds: self, policy.video, settings, policy.max_pixels):
                self._next_time = frame.time + self._interval
                self._take(frame)
                if not waits and self._closing.is_set():
                    break
        except TianquanError as error:
            self.error = error
        except Exception as error:  # of the file, which may be a network's, or of ours: whoever asks hears of it
            self.error = MediaError(f"the video cannot be read on ({type(error).__name__}: {error})")
            self.error.__cause__ = error
        finally:
            self._first.set()
            self._file.close()

    def _take(self, frame: VideoFrame) -> None:
        """Keep a frame that shows something new, within the budget, and let the model see it."""
        if self._frames and frame.change_from(self._frames[-1]) < DUPLICATE_CHANGE:
            return
        with self._lock:
            self._frames.append(frame)
            if len(self._frames) > self._room:
                half = len(self._frames) // 2
                older = self._frames[:half]
                self._frames = (older[::2] if half > 1 else []) + self._frames[half:]
        last(self._answer_now())
        self._first.set()

    def _answer_now(self) -> Answer:
        return self._llm.answer(self._prompt("", list(self._frames)), _EXTEND)
