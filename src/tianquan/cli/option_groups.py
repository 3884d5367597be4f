"""Options that commands share, in groups: a command takes a group as one parameter, the command line has its fields.

@grouped
def trace(model: options.ModelArgument, *, running: Running, ...) -> None:
    llm = running.load(model)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from tianquan.cli import options
from tianquan.request import ImagePolicy, MediaPolicy, SamplingParams, VideoPolicy

if TYPE_CHECKING:
    from tianquan.llm import LLM


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a model is run."""

    precision: options.Precision = None
    backend: options.BackendOption = "native"
    device: options.Device = "cpu"
    threads: options.Threads = None
    revision: options.Revision = None
    adapter: options.AdapterFolder = None

    def load(self, model: str, progress: options.LoadProgress | None = None, memory: Memory | None = None) -> LLM:
        """Load a model behind a progress bar, which shows again when a tower is loaded on first use."""
        from tianquan.engine.interface import EngineOptions
        from tianquan.engine.parameter_checks import parse_bytes
        from tianquan.loading import load

        progress = progress or options.LoadProgress()
        memory = memory or Memory()
        try:
            return load(
                model,
                **vars(self),
                engine=EngineOptions(kv_cache_bytes=parse_bytes(memory.kv_cache_bytes, "--kv-cache-bytes")),
                max_memory=parse_bytes(memory.max_memory, "--max-memory"),
                kv_format=memory.kv_format,
                on_progress=progress,
            )
        finally:
            progress.stop()


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the engine may take."""

    kv_cache_bytes: options.KVCacheBytes = None
    max_memory: options.MaxMemory = None
    kv_format: options.KVFormatOption = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, as far as the user says; the rest is the checkpoint's. Impossible values are refused.

    Raises:
        ParameterError: a value out of range.
    """

    temperature: options.Temperature = None
    top_p: options.TopP = None
    top_k: options.TopK = None
    min_p: options.MinP = None
    repetition_penalty: options.RepetitionPenalty = None
    max_tokens: options.MaxTokens = None
    seed: options.Seed = None
    stop: options.Stop = None

    def __post_init__(self) -> None:
        from tianquan.engine.parameter_checks import check_params

        check_params(self.over(SamplingParams()))

    def over(self, default: SamplingParams) -> SamplingParams:
        """Return `default` with what the user set. Temperature 0 alone means plain greedy decoding."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.stop is not None:
            given["stop"] = tuple(self.stop)
        if self.temperature == 0:
            default = SamplingParams(max_tokens=default.max_tokens)
        return replace(default, **given)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How pictures and long sound are looked at."""

    max_slices: options.MaxSlices = None
    max_image_tokens: options.MaxImageTokens = None
    image_detail: options.ImageDetailOption = "full"
    long_audio: options.LongAudioOption = "error"

    def policy(self, videos: Videos | None = None) -> MediaPolicy:
        """Return the policy of these options and of those about videos."""
        image = ImagePolicy(
            max_slices=self.max_slices, max_image_tokens=self.max_image_tokens, image_detail=self.image_detail
        )
        video = VideoPolicy() if videos is None else videos.policy()
        return MediaPolicy(image=image, video=video, long_audio=self.long_audio)


@dataclass(frozen=True, kw_only=True)
class Videos:
    """How videos are looked at."""

    video_frames: options.VideoFrames = VideoPolicy.max_frames
    video_tokens: options.VideoTokens = VideoPolicy.max_tokens
    video_sampling: options.VideoSampling = VideoPolicy.sampling
    video_fps: options.VideoFps = None
    video_sound: options.VideoSound = False

    def policy(self) -> VideoPolicy:
        """Return the policy of these options."""
        return VideoPolicy(
            sampling=self.video_sampling,
            frames_per_second=self.video_fps,
            max_frames=self.video_frames,
            max_tokens=self.video_tokens,
            with_sound=self.video_sound,
        )


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command as the command line sees it: each group replaced by its options."""
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        assert isinstance(kind, type)
        groups[name] = kind
        of_fields = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=of_fields[field.name]
            )
            for field in fields(kind)
        ]

    def run(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**given, **made)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
