"""The tokens that stand for media, and where their features go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tianquan.processing.frames import time_text
from tianquan.processing.image import ImageSettings
from tianquan.processing.tokenizer import Tokenizer
from tianquan.processing.video_input import DecodedVideo
from tianquan.request import AudioInput, FeatureSpan, ImageInput, SliceGrid


@dataclass(frozen=True, kw_only=True)
class PlaceholderTokens:
    """The strings of the tokens that frame and hold media in a prompt."""

    unknown: str  # stands where a feature row goes
    image_start: str
    image_end: str
    image_id_start: str
    image_id_end: str
    slice_start: str
    slice_end: str
    audio_start: str
    audio_end: str

    def all(self) -> tuple[str, ...]:
        """Every token string."""
        return tuple(vars(self).values())


@dataclass(frozen=True, kw_only=True)
class ProcessorSettings:
    """What the checkpoint says about turning media into tokens."""

    image: ImageSettings
    tokens: PlaceholderTokens
    use_image_id: bool
    num_mels: int
    max_audio_frames: int


class PromptBuilder:
    """Collects token ids and remembers where features go."""

    def __init__(self, tokenizer: Tokenizer, ids: dict[str, int], settings: ProcessorSettings, num_images: int) -> None:
        self.token_ids: list[int] = []
        self.spans: list[FeatureSpan] = []
        self._tokenizer = tokenizer
        self._ids = ids
        self._settings = settings
        self._num_images = num_images
        self._num_slices = self._num_clips = 0
        self.images: list[ImageInput] = []  # pictures and frames in the order of their spans
        self.clips: list[AudioInput] = []

    def add_picture(self, image: ImageInput) -> None:
        """Add one picture."""
        self.images.append(image)
        self.add_image(image.grid, image.is_kept, image.tokens_per_slice)

    def add_video(self, video: DecodedVideo, sound_track: Sequence[AudioInput]) -> None:
        """Add the frames of a video, a line each: its time and one slice; then its sound track."""
        tokens = self._settings.tokens
        for image, time in zip(video.frames, video.times, strict=True):
            self.images.append(image)
            self.token_ids += self._tokenizer.encode_text(time_text(time))
            self._add_slice(tokens.image_start, tokens.image_end)
            self.token_ids += self._tokenizer.encode_text("\n")
        self.add_clips(sound_track)

    def add_clips(self, clips: Sequence[AudioInput]) -> None:
        """Add the clips of one recording."""
        for clip in clips:
            self.clips.append(clip)
            self.add_audio(clip.span)

    def add_image(
        self, grid: SliceGrid, is_kept: Sequence[bool] | None = None, tokens_per_slice: int | None = None
    ) -> None:
        """Add the tokens of a picture: the overview, then the slices row by row, rows separated by a line feed."""
        tokens = self._settings.tokens
        if self._settings.use_image_id:
            self.token_ids.append(self._ids[tokens.image_id_start])
            self.token_ids += self._tokenizer.encode_text(str(self._num_images))
            self.token_ids.append(self._ids[tokens.image_id_end])
        self._num_images += 1
        self._add_slice(tokens.image_start, tokens.image_end, tokens_per_slice)
        for row in range(grid.rows):
            if row > 0:
                self.token_ids += self._tokenizer.encode_text("\n")
            for n in range(row * grid.cols, (row + 1) * grid.cols):
                if is_kept is None or is_kept[n]:
                    self._add_slice(tokens.slice_start, tokens.slice_end, tokens_per_slice)
                else:  # its place in the grid stays
                    self.token_ids += [self._ids[tokens.slice_start], self._ids[tokens.slice_end]]

    def _add_slice(self, start: str, end: str, length: int | None = None) -> None:
        length = length or self._settings.image.tokens_per_slice
        self._add_span(start, FeatureSpan(len(self.token_ids) + 1, length, "image", self._num_slices), end)
        self._num_slices += 1

    def add_audio(self, span_len: int) -> None:
        """Add the tokens of one clip."""
        tokens = self._settings.tokens
        span = FeatureSpan(len(self.token_ids) + 1, span_len, "audio", self._num_clips)
        self._num_clips += 1
        self._add_span(tokens.audio_start, span, tokens.audio_end)

    def _add_span(self, start: str, span: FeatureSpan, end: str) -> None:
        self.token_ids.append(self._ids[start])
        self.token_ids += [self._ids[self._settings.tokens.unknown]] * span.length
        self.token_ids.append(self._ids[end])
        self.spans.append(span)
