"""Options that several commands share, and loading a model with a progress bar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tianquan.backends import Backend
from tianquan.backends.kv_cache import KVFormat
from tianquan.cli.progress import WorkProgress
from tianquan.request import (
    FrameSampling,
    ImageDetail,
    LongAudio,
)

if TYPE_CHECKING:
    from rich.progress import TaskID


ModelArgument = Annotated[str, typer.Argument(help="A model folder, or a hub id: owner/name[@revision].")]
Precision = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16, int8 or int4 (the default), or a recipe such as int4-small."),
]
BackendOption = Annotated[Backend, typer.Option(help="native (C++ kernels), reference (numpy) or torch (PyTorch).")]
Device = Annotated[str, typer.Option(help="cpu; with --backend torch also cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the native backend; one per core by default.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")]
Temperature = Annotated[float | None, typer.Option(help="0 = greedy; 0.7 by default.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this mass; 0.8 by default.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many tokens, 0 = all; 100 by default.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest; off by default.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 discourages repeats; 1.2 by default, 1 when greedy.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of the answer.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer at this text; may be repeated.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on to --max-tokens, for measurements.")]
MaxSlices = Annotated[int | None, typer.Option(help="Most slices of a picture beside its overview; 0 = overview only.")]
MaxImageTokens = Annotated[int | None, typer.Option(help="Most prompt tokens of one picture.")]
ImageDetailOption = Annotated[
    ImageDetail,
    typer.Option(help="full: all of a picture; trim: not what is blank, repeated or coarse; economy: less."),
]
LongAudioOption = Annotated[
    LongAudio, typer.Option(help="Sound over 30 s: refuse, keep the beginning, or split at quiet places.")
]
VideoFrames = Annotated[int, typer.Option(help="Most frames of a video that are looked at.")]
VideoTokens = Annotated[int, typer.Option(help="Most prompt tokens of one video; frames of little change share some.")]
VideoSampling = Annotated[
    FrameSampling, typer.Option(help="Frames spread over the video, at --video-fps, or where the picture changes much.")
]
VideoFps = Annotated[float | None, typer.Option(help="Frames per second: at most when uniform, else exactly; 4, 1, 4.")]
VideoSound = Annotated[bool, typer.Option("--video-sound", help="The sound track of a video is heard too.")]
AdapterFolder = Annotated[Path | None, typer.Option("--adapter", help="A LoRA adapter in peft's format.")]
MediaRoot = Annotated[Path | None, typer.Option(help="Folder that relative media paths start from.")]

KVCacheBytes = Annotated[
    str | None, typer.Option(help="Memory for keys and values, as 512M or 1G; 1G by default, touched as used.")
]
MaxMemory = Annotated[
    str | None, typer.Option(help="Memory for everything, as 4G: weights, keys and values, features, work.")
]
KVFormatOption = Annotated[
    KVFormat | None, typer.Option("--kv-format", help="How keys and values are kept; float16 by default.")
]


class VideoProgress:
    """A bar on stderr while videos are read; for a pipe, whose length nobody knows, one that only moves."""

    def __init__(self) -> None:
        self._bar: WorkProgress | None = None

    def __call__(self, done: float, total: float | None) -> None:
        """Show that `done` seconds of a video are read."""
        if self._bar is None:
            self._bar = WorkProgress("reading the video", total)
            self._bar.__enter__()
        self._bar.advance_to(done)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


class LoadProgress:
    """A progress bar on stderr while a component is read; it comes back when a tower is loaded on first use."""

    def __init__(self, verb: str = "loading") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(verb + " {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, component: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes of a component are read."""
        if component not in self._tasks:
            self._progress.start()
            self._tasks[component] = self._progress.add_task(component.replace("_", " "), total=total)
        self._progress.update(self._tasks[component], completed=done)
        if done == total:
            self._progress.remove_task(self._tasks.pop(component))
        if not self._tasks:
            self._progress.stop()

    def stop(self) -> None:
        """Take the bar away, whatever is unfinished."""
        while self._tasks:
            self._progress.remove_task(self._tasks.popitem()[1])
        self._progress.stop()
