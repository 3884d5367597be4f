"""Pictures and sound in vLLM's multimodal pipeline: prepared, cached and placed by this package's rules.

An item is one picture (overview and slices) or one recording (one clip, or the chunks of a long one). What travels to
the engine's processes:

    image_patches (P, 3 * patch^2) bytes of all slices     image_grids (slices, 2) rows and columns of patches
    image_layout (2,) columns and rows of slices
    audio_mels (F, num_mels) of all clips                  audio_sizes (clips, 3) mel frames, encoder frames, tokens

The original encodes all clips of a conversation in one call, and a clip's last frame depends on whether a longer one
is beside it (`processing/audio.py`). So recordings are looked at together before they are cached one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import (
    ImageProcessorItems,
    ModalityDataItems,
    MultiModalDataItems,
    MultiModalDataParser,
    ProcessorBatchItems,
)
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from tianquan.errors import ParameterError, TianquanError
from tianquan.processing.audio import HOP_LEN, MAX_SAMPLES, audio_counts, prepare_audio
from tianquan.processing.image import decoded_rgb, patchify, slice_image
from tianquan.processing.processor import Processor
from tianquan.request import ImagePolicy, MediaPolicy, SliceGrid
from tianquan.vllm_plugin.model_folder import ModelFolder, open_model_folder
from tianquan.vllm_plugin.renderer import count_frames, empty_frames

Waveform = npt.NDArray[np.float32]
Sound = tuple[Any, float]  # samples, sample rate

_IMAGE_FIELDS = ("image_patches", "image_grids", "image_layout")
_AUDIO_FIELDS = ("audio_mels", "audio_sizes")


def media_policy(options: Mapping[str, Any]) -> MediaPolicy:
    """Return the policy that vLLM's `mm_processor_kwargs` ask for.

    Args:
        options: any of max_slices, max_image_tokens, long_audio; see `request.ImagePolicy` and `MediaPolicy`.

    Raises:
        ParameterError: another name.
    """
    unknown = sorted(set(options) - {"max_slices", "max_image_tokens", "long_audio"})
    if unknown:
        raise ParameterError(
            f"mm_processor_kwargs has {', '.join(unknown)}; expected max_slices, max_image_tokens or long_audio"
        )
    image = ImagePolicy(max_slices=options.get("max_slices"), max_image_tokens=options.get("max_image_tokens"))
    return MediaPolicy(image=image, long_audio=options.get("long_audio", "error"))


@dataclass(frozen=True)
class Recording:
    """One recording cut into clips, and how long the longest clip of its prompt is, in encoder frames."""

    clips: tuple[Waveform, ...]
    longest_frames: int

    @property
    def moved_cuts(self) -> str:
        """For each clip, 1 if a longer one is beside it: all that its features owe to the others."""
        return "".join(str(int(audio_counts(len(clip)).encoder_frames < self.longest_frames)) for clip in self.clips)


class RecordingItems(ProcessorBatchItems[Recording | None]):
    """The recordings of a prompt; None where a cached one is named only."""

    def __init__(self, data: Sequence[Recording | None]) -> None:
        super().__init__(data, "audio")

    def get_item_for_hash(self, index: int) -> Any:
        """Return what identifies a recording: its samples. How it was cut is among the hashed options."""
        recording = self.data[index]
        return None if recording is None else np.concatenate(recording.clips)


class SoundItems(ProcessorBatchItems[Sound | None]):
    """The sounds of a prompt as they were given, before they are looked at together."""

    def __init__(self, data: Sequence[Sound | None]) -> None:
        super().__init__(data, "audio")


class MegrezoDataParser(MultiModalDataParser):
    """Takes media as vLLM's users give them: one or several, as pictures, arrays, or (samples, sample rate)."""

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if data is None:
            return None
        if self.is_embeddings(data) or isinstance(data, dict):
            raise VLLMValidationError("image embeddings are not supported; give pictures", parameter="image")
        is_one = isinstance(data, Image.Image | MediaWithBytes) or getattr(data, "ndim", 0) == 3
        return ImageProcessorItems([data] if is_one else list(data))

    def _parse_audio_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if data is None:
            return None
        if self.is_embeddings(data) or isinstance(data, dict):
            raise VLLMValidationError("audio embeddings are not supported; give samples", parameter="audio")
        is_one = isinstance(data, tuple) or getattr(data, "ndim", 0) == 1
        items = [data] if is_one else list(data)
        if items and isinstance(items[0], Recording):  # a second time: those that are not in the cache
            return RecordingItems(items)
        return SoundItems([item if isinstance(item, tuple | None) else (item, Processor.sample_rate) for item in items])


class MegrezoProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about media before there are any."""

    @property
    def folder(self) -> ModelFolder:
        """The model folder."""
        return open_model_folder(self.ctx.model_config)

    def policy(self, options: Mapping[str, Any]) -> MediaPolicy:
        """Return the policy of a request, over that of the server."""
        return media_policy(self.ctx.get_mm_config().merge_mm_processor_kwargs(options))

    def get_data_parser(self) -> MultiModalDataParser:
        """See vLLM."""
        return MegrezoDataParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """See vLLM: any number of pictures and recordings."""
        return {"image": None, "audio": None}

    @property
    def max_clip_samples(self) -> int:
        """Samples of the longest clip."""
        return min(MAX_SAMPLES, self.folder.processor.settings.max_audio_frames * 2 * HOP_LEN)

    @property
    def max_clip_tokens(self) -> int:
        """Feature rows of the longest clip: begin, its tokens, end."""
        return audio_counts(self.max_clip_samples).tokens + 2

    @property
    def max_clips(self) -> int:
        """Clips of the longest recording: one, or as many as the context window holds when long ones are cut."""
        if self.policy({}).long_audio != "chunk":
            return 1
        return max(1, self.ctx.model_config.max_model_len // self.max_clip_tokens)

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """See vLLM: feature rows of the largest item of each kind."""
        image = self.folder.processor.settings.image
        return {
            "image": (1 + image.max_slices) * image.tokens_per_slice,
            "audio": self.max_clips * self.max_clip_tokens,
        }


class MegrezoDummyInputs(BaseDummyInputsBuilder[MegrezoProcessingInfo]):
    """The largest media, for vLLM to measure memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return empty frames for the media."""
        tokens = self.info.folder.processor.settings.tokens
        image, audio = tokens.image_start + tokens.image_end, tokens.audio_start + tokens.audio_end
        return image * mm_counts.get("image", 0) + audio * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """Return a picture that is cut into the most slices, and the longest recording."""
        image = self.info.folder.processor.settings.image
        side = image.scale_resolution
        sound = np.zeros(self.info.max_clips * self.info.max_clip_samples, np.float32)
        return {
            "image": self._get_dummy_images(
                width=side, height=side * image.max_slices, num_images=mm_counts.get("image", 0)
            ),
            "audio": [(sound, Processor.sample_rate)] * mm_counts.get("audio", 0),
        }


class MegrezoMediaProcessor(BaseMultiModalProcessor[MegrezoProcessingInfo]):
    """Turns media into what the towers take, and empty frames into placeholder tokens."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """See vLLM. All recordings of the prompt are cut first.

        Raises:
            VLLMValidationError: media or options that cannot be used.
        """
        try:
            sounds = inputs.mm_data_items.get("audio")
            if isinstance(sounds, SoundItems):
                policy = self.info.policy(inputs.hf_processor_mm_kwargs)
                inputs.mm_data_items["audio"] = self._cut(sounds, policy)
            return super().apply(inputs, timing_ctx)
        except TianquanError as error:
            raise VLLMValidationError(str(error), parameter="messages") from error

    def _cut(self, sounds: SoundItems, policy: MediaPolicy) -> RecordingItems:
        """Cut all sounds of a prompt into clips that know how long the longest is."""
        processor = self.info.folder.processor
        cut = [
            None if sound is None else tuple(processor.load_clips(sound, policy, label=f"audio {n}"))
            for n, sound in enumerate(sounds.get_all(), 1)
        ]
        longest = max((audio_counts(len(clip)).encoder_frames for clips in cut for clip in clips or ()), default=0)
        return RecordingItems([None if clips is None else Recording(clips, longest) for clips in cut])

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        hashes: dict[str, list[str]] = super()._get_mm_hashes(inputs)
        sounds = inputs.mm_data_items.get("audio")
        if isinstance(sounds, RecordingItems):
            recordings = sounds.get_all()
            if None in recordings and len(recordings) > 1:
                raise ParameterError(
                    "a recording is named by uuid alone beside others, which its features depend on; give its samples"
                )
            hashes["audio"] = [
                name if recording is None or "1" not in recording.moved_cuts else f"{name}-{recording.moved_cuts}"
                for name, recording in zip(hashes["audio"], recordings, strict=True)
            ]
        return hashes

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Prepare the items that are not in the cache."""
        policy = self.info.policy(hf_kwargs)
        fields: dict[str, list[torch.Tensor]] = {}
        if "image" in mm_items:
            fields.update(self._image_fields(mm_items["image"].get_all(), policy))
        if "audio" in mm_items:
            fields.update(self._audio_fields(mm_items["audio"].get_all()))
        return BatchFeature(fields)

    def _image_fields(self, pictures: Sequence[Any], policy: MediaPolicy) -> dict[str, list[torch.Tensor]]:
        settings = self.info.folder.processor.settings.image
        size = settings.patch_size
        fields: dict[str, list[torch.Tensor]] = {name: [] for name in _IMAGE_FIELDS}
        for n, picture in enumerate(pictures, 1):
            label = f"image {n}"
            given = picture if isinstance(picture, Image.Image) else np.asarray(picture)
            image = slice_image(decoded_rgb(given, policy.max_pixels, label), settings, policy.image, label)
            patches = np.concatenate([patchify(pixels, size) for pixels in image.slices])
            grids = [(pixels.shape[0] // size, pixels.shape[1] // size) for pixels in image.slices]
            fields["image_patches"].append(torch.from_numpy(patches))
            fields["image_grids"].append(torch.tensor(grids))
            fields["image_layout"].append(torch.tensor([image.grid.cols, image.grid.rows]))
        return fields

    def _audio_fields(self, recordings: Sequence[Recording]) -> dict[str, list[torch.Tensor]]:
        settings = self.info.folder.processor.settings
        fields: dict[str, list[torch.Tensor]] = {name: [] for name in _AUDIO_FIELDS}
        for n, recording in enumerate(recordings, 1):
            clips = prepare_audio(
                recording.clips,
                settings.num_mels,
                settings.max_audio_frames,
                [f"audio {n}"] * len(recording.clips),
                longest_frames=recording.longest_frames,
            )
            sizes = [(len(clip.mel), clip.num_frames, clip.num_tokens) for clip in clips]
            fields["audio_mels"].append(torch.from_numpy(np.concatenate([clip.mel for clip in clips])))
            fields["audio_sizes"].append(torch.tensor(sizes))
        return fields

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        # The models cut and pack on the host, and move to the device what they compute with.
        kinds = {**dict.fromkeys(_IMAGE_FIELDS, "image"), **dict.fromkeys(_AUDIO_FIELDS, "audio")}
        return {name: MultiModalFieldConfig.batched(kind, keep_on_cpu=True) for name, kind in kinds.items()}

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> list[PromptReplacement]:
        processor = self.info.folder.processor
        frames = empty_frames(processor)

        def image_tokens(index: int) -> PromptUpdateDetails:
            cols, rows = out_mm_kwargs["image"][index]["image_layout"].data.tolist()
            return self._details(processor.image_token_ids(SliceGrid(cols, rows), index))

        def audio_tokens(index: int) -> PromptUpdateDetails:
            sizes = out_mm_kwargs["audio"][index]["audio_sizes"].data.tolist()
            return self._details(processor.audio_token_ids([num_tokens + 2 for _, _, num_tokens in sizes]))

        return [
            PromptReplacement(modality="image", target=frames["image"], replacement=image_tokens),
            PromptReplacement(modality="audio", target=frames["audio"], replacement=audio_tokens),
        ]

    def _details(self, token_ids: list[int]) -> PromptUpdateDetails:
        processor = self.info.folder.processor
        unknown = processor.placeholder_ids[processor.settings.tokens.unknown]
        return PromptUpdateDetails.select_token_id(token_ids, unknown)

    def _recompute_cached_prompt_update(self, cached_update: Any, new_item_idx: int) -> Any:
        """Give a picture from the cache its number in this prompt."""
        update = super()._recompute_cached_prompt_update(cached_update, new_item_idx)
        processor = self.info.folder.processor
        if update.modality != "image" or not processor.settings.use_image_id:
            return update
        tokens, ids = processor.settings.tokens, processor.placeholder_ids
        old = update.content.full
        number = processor.tokenizer.encode_text(str(new_item_idx))
        renumbered = [ids[tokens.image_id_start], *number, *old[old.index(ids[tokens.image_id_end]) :]]
        return update.with_content(self._details(renumbered))

    def _apply_prompt_updates(self, token_ids: list[int], mm_prompt_updates: Any) -> Any:
        """Fill the frames; vLLM's search for them in decoded text is never needed, for they are special tokens.

        Raises:
            ParameterError: not as many frames as media.
        """
        for kind, frame in empty_frames(self.info.folder.processor).items():
            count, expected = count_frames(token_ids, frame), len(mm_prompt_updates.get(kind, ()))
            if count != expected:
                raise ParameterError(f"the prompt has {count} places for {kind} inputs, got {expected} of them")
        filled, _, placeholders = self._apply_token_matches_with_placeholders(token_ids, mm_prompt_updates)
        return filled, {kind: found for kind, found in placeholders.items() if found}
