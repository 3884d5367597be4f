"""Plain data that travels between processing, the model and the engine. No behaviour beyond derived sizes.

Legend: P patches, F mel frames, T prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "abort"]
LongAudio = Literal["error", "truncate", "chunk"]
WhenFull = Literal["error", "drop_oldest_turns", "summarize"]
ImageDetail = Literal["full", "trim", "economy"]
FrameSampling = Literal["uniform", "rate", "scenes"]


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """How finely pictures are looked at. None means the checkpoint's own setting.

    max_slices: most slices beside the overview; 0 = the overview only. A checkpoint that shows pictures whole by itself
        (`slice_mode` false) cuts them if this is given.
    max_image_tokens: most prompt tokens of one picture (a slice and the overview cost 64 each).
    image_detail: `full`: every slice, every token; `trim`: none that is blank or repeats another, and no more than the
        picture has detail for; `economy`: so, and the tokens of a slice merged to half. See docs/image-detail.md.
    """

    max_slices: int | None = None
    max_image_tokens: int | None = None
    image_detail: ImageDetail = "full"


@dataclass(frozen=True, kw_only=True)
class VideoPolicy:
    """Which frames of a video the model sees and what they may cost. See docs/video.md.

    sampling: `uniform`: `max_frames` frames spread over the whole video, at most `frames_per_second`; `rate`:
        `frames_per_second`, less often once `max_frames` are passed; `scenes`: of those, where much changes.
    frames_per_second: > 0; None: 4 for uniform and scenes, 1 for rate.
    max_frames: most frames that are encoded.
    max_tokens: most prompt tokens of one video: frames, their times and the sound track.
    max_merge: most consecutive frames of little change that share one frame's tokens (their mean); 1 = none.
    frame_pixels: most pixels of a frame as the encoder sees it; None: a slice of the checkpoint.
    with_sound: the sound track goes through the audio encoder.
    max_seconds: longest video.
    max_decoded_pixels: of all frames that have to be decoded on the way to the chosen ones: a bound on time.
    """

    sampling: FrameSampling = "uniform"
    frames_per_second: float | None = None
    max_frames: int = 32
    max_tokens: int = 2048  # half the official window
    max_merge: int = 4
    frame_pixels: int | None = None
    with_sound: bool = False
    max_seconds: float = 7200.0
    max_decoded_pixels: int = 400 * 10**9  # an hour and more of 1080p


@dataclass(frozen=True, kw_only=True)
class MediaPolicy:
    """What a user may set about media, with the safe defaults."""

    image: ImagePolicy = field(default_factory=ImagePolicy)
    video: VideoPolicy = field(default_factory=VideoPolicy)
    long_audio: LongAudio = "error"
    max_pixels: int = 100_000_000  # a 100-megapixel photograph; 300 MB once decoded to RGB
    max_total_pixels: int | None = None  # of all pictures of a conversation, before any is decoded; None: no cap
    max_audio_seconds: float = 3600.0  # 230 MB of float32 samples


@dataclass(frozen=True)
class SliceGrid:
    """How a picture was cut: `cols` x `rows` slices beside the overview; 0 x 0 when it was not cut."""

    cols: int
    rows: int


@dataclass(frozen=True)
class ImageInput:
    """One picture as the vision encoder takes it: the overview first, then its slices row by row.

    Or consecutive frames of a video that share tokens: one slice (frames, height, width, 3), whose features are the
    mean of the frames'.
    """

    slices: tuple[npt.NDArray[np.uint8], ...]  # each (height, width, 3), sides multiples of the patch size
    grid: SliceGrid
    digest: bytes  # of the slices' pixels and sizes: equal digests give equal features
    num_video_frames: int = 0  # 0: a picture
    is_kept: tuple[bool, ...] | None = None  # which slices of the grid `slices` has behind the overview; None: all
    tokens_per_slice: int | None = None  # to which the tokens of each slice are merged; None: not merged


@dataclass(frozen=True)
class AudioInput:
    """One clip as the audio encoder takes it."""

    mel: npt.NDArray[np.float32]  # (F, num_mels), cut to what the encoder reads of it
    num_frames: int  # encoder frames (50 a second) of the clip itself
    num_tokens: int  # tokens (25 a second), without the begin and end embeddings
    num_samples: int  # at 16 kHz
    digest: bytes

    @property
    def span(self) -> int:
        """Placeholder tokens in the prompt: begin, tokens, end."""
        return self.num_tokens + 2


@dataclass(frozen=True)
class FeatureSpan:
    """Placeholder positions start..start+length of the prompt take rows of one medium's features."""

    start: int
    length: int
    kind: Literal["image", "audio"]
    index: int  # which image slice of the whole prompt, or which clip


@dataclass(frozen=True)
class Prompt:
    """Everything the model needs to answer: token ids, media, and where the media's features go."""

    token_ids: npt.NDArray[np.int32]  # (T,)
    images: tuple[ImageInput, ...] = ()
    audios: tuple[AudioInput, ...] = ()
    spans: tuple[FeatureSpan, ...] = ()

    @property
    def num_image_tokens(self) -> int:
        """Prompt tokens filled with features of pictures."""
        return self._num_vision_tokens(of_video=False)

    @property
    def num_video_tokens(self) -> int:
        """Prompt tokens filled with features of video frames."""
        return self._num_vision_tokens(of_video=True)

    @property
    def num_video_frames(self) -> int:
        """Frames that went into those."""
        return sum(image.num_video_frames for image in self.images)

    def _num_vision_tokens(self, of_video: bool) -> int:
        is_video = [image.num_video_frames > 0 for image in self.images for _ in image.slices]
        return sum(span.length for span in self.spans if span.kind == "image" and is_video[span.index] == of_video)

    @property
    def num_audio_tokens(self) -> int:
        """Prompt tokens filled with audio features."""
        return sum(span.length for span in self.spans if span.kind == "audio")


@dataclass(frozen=True, kw_only=True)
class OutputFormat:
    """A form the answer must have; the engine lets only tokens through that keep to it.

    kind: `json_schema` (definition: the schema as JSON text), `regex`, `choice` (definition: a JSON list of
        strings), or `grammar` (Lark, in llguidance's dialect). A JSON object of any shape is the schema
        `{"type": "object"}`.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    definition: str


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. The defaults are plain sampling; `temperature=0` is greedy.

    temperature: >= 0; 0 takes the most likely token.
    top_k: 0 = off. top_p, min_p: in (0, 1] and [0, 1); 1 and 0 = off.
    repetition_penalty: > 0; divides the logits of tokens already in the prompt or the answer; 1 = off.
    presence_penalty, frequency_penalty: in [-2, 2]; taken off the logits of tokens already in the answer, once
        and for each occurrence; 0 = off.
    logit_bias: pairs (token id, value in [-100, 100]) added to logits; -100 all but bans, 100 all but forces.
    min_tokens: tokens before the answer may end by itself (stop strings still end it).
    max_tokens: most tokens of the answer.
    seed: None draws one from the system. The same seed gives the same answer, alone or beside others.
    stop: strings that end the answer and are not part of it.
    ignore_eos: go on to max_tokens, for measurements; end-of-answer tokens are then tokens like others.
    logprobs: None, or how many of the likeliest tokens to report at each place beside the chosen one.
    n: answers to one prompt; see `LLM.choices`.
    output_format: None, or a form the answer must have.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    max_tokens: int = 1024
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    output_format: OutputFormat | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probabilities at one place of the answer, of the model itself: before penalties and temperature."""

    token_id: int  # the chosen token
    logprob: float
    top: tuple[tuple[int, float], ...]  # the likeliest tokens and theirs, best first


@dataclass(frozen=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    audio_tokens: int
    cached_tokens: int = 0  # of the prompt, whose keys and values were there already
    video_tokens: int = 0  # frames; a sound track counts as audio
    video_frames: int = 0  # that were encoded; several may share tokens


@dataclass(frozen=True)
class Timings:
    """Milliseconds of each stage of one request."""

    preprocess_ms: float
    vision_ms: float
    audio_ms: float
    prefill_ms: float
    ttft_ms: float
    decode_ms: float
    queue_ms: float = 0.0  # between arrival and the first work on it

    def decode_tokens_per_second(self, completion_tokens: int) -> float:
        """Rate of the tokens after the first; 0 when there was only one."""
        return 1000.0 * (completion_tokens - 1) / self.decode_ms if completion_tokens > 1 else 0.0


@dataclass(frozen=True)
class Completion:
    """A finished answer."""

    text: str
    token_ids: list[int]  # with the token that ended the answer, if one did
    prompt_token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token when asked for
