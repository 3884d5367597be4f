"""The checkpoint's JSON files turned into our plain data. The only place that knows their keys.

A key that would change the mathematics and has a value we do not implement is an error, never ignored.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tianquan.checkpoint.plain_file import is_present, read_text
from tianquan.config import AudioConfig, LanguageConfig, ModelConfig, ResamplerConfig, VisionConfig
from tianquan.errors import CheckpointError
from tianquan.processing.image import ImageSettings
from tianquan.processing.prompt_builder import PlaceholderTokens, ProcessorSettings
from tianquan.request import SamplingParams

# The vendor's advice for conversation; greedy decoding is advised for reading text in pictures.
VENDOR_SAMPLING = SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.2, max_tokens=1024)

_RESAMPLER_HEAD_DIM = 128  # a constant of the original code
_RESAMPLER_NORM_EPS = 1e-6  # likewise
_AUDIO_NORM_EPS = 1e-5  # PyTorch's default, used by the original audio encoder

# The largest sizes that are taken for meant: 4 to 30 times the official ones or more. Anything larger is damage,
# and would end as a hang or out of memory, far from its cause.
_MAXIMA = {
    "num_hidden_layers": 1000,  # each is a list of tensor names
    "n_layer": 1000,
    "hidden_size": 1 << 16,  # matrices are its square
    "n_state": 1 << 16,
    "output_dim": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "n_head": 1 << 12,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 24,  # a logit for each is held at every step
    "max_position_embeddings": 1 << 20,  # caches are sized by it
    "query_num": 1 << 12,  # that many placeholder tokens for each slice
    "patch_size": 1 << 10,  # pixels
    "image_size": 1 << 14,  # pixels of one side; positions grow with its square
    "n_mels": 1 << 10,
    "n_ctx": 1 << 14,  # frames of 20 ms; attention grows with its square
    "scale_resolution": 1 << 12,  # every picture is scaled to about its square
    "max_slice_nums": 100,  # all slice grids are tried
}
_LARGEST = (1 << 63) - 1  # of other integers: sizes of files
_LARGEST_NUMBER = 1e12  # rope_theta is the largest real one: millions
_NORM = 0.5  # mean and standard deviation of pixels
_AUDIO_FRONT_END = {"n_fft": 400, "hop_length": 160, "chunk_length": 30}  # samples, samples, seconds


class JsonFile:
    """One parsed JSON object that names itself in errors."""

    def __init__(self, label: str, values: Mapping[str, Any]) -> None:
        self.label = label
        self._values = values

    @classmethod
    def read(cls, path: Path) -> JsonFile:
        """Parse a file.

        Raises:
            CheckpointError: the file is missing, unreadable or not a JSON object.
        """
        try:
            values = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
            raise CheckpointError(f"{path}: not valid JSON; download or copy it again") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}")
        return cls(str(path), values)

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def optional(self, key: str) -> Any:
        """Return the value, or None when it is absent or null."""
        return self._values.get(key)

    def _value(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        return default if value is None else value  # null means absent, as in the original library

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive integer within the maximum of its key."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{self.label}: {key} must be a positive integer, got {reprlib.repr(value)}")
        maximum = _MAXIMA.get(key, _LARGEST)
        if value > maximum:
            raise CheckpointError(f"{self.label}: {key} must be at most {maximum}, got {reprlib.repr(value)}")
        return value

    def number(self, key: str) -> float:
        """Return a positive number."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST_NUMBER:
            raise CheckpointError(
                f"{self.label}: {key} must be a positive number up to {_LARGEST_NUMBER:g}, got {reprlib.repr(value)}"
            )
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a non-empty string."""
        value = self._value(key, default)
        if not isinstance(value, str) or not value:
            raise CheckpointError(f"{self.label}: {key} must be a non-empty string, got {reprlib.repr(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.label}: {key} must be true or false, got {reprlib.repr(value)}")
        return value

    def without(self, key: str) -> JsonFile:
        """Return the object as it would be without a key that someone else answers for."""
        return JsonFile(self.label, {name: value for name, value in self._values.items() if name != key})

    def section(self, key: str) -> JsonFile:
        """Return a nested object."""
        value = self._values.get(key)
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.label}: {key} must be an object, got {type(value).__name__}")
        return JsonFile(f"{self.label}: {key}", value)

    def require(self, key: str, supported: Any, default: Any) -> None:
        """Raise unless the value is the one we implement."""
        value = self._value(key, default)
        if value != supported:
            raise CheckpointError(f"{self.label}: {key} is {reprlib.repr(value)}; only {supported!r} is supported")


def parse_config(file: JsonFile) -> ModelConfig:
    """Return the model configuration of a config.json.

    Raises:
        CheckpointError: another architecture, a missing key, sizes that do not fit, unsupported mathematics.
    """
    file.require("model_type", "megrezo", None)
    language = _parse_language(file)
    vision = _parse_vision(file)
    audio = _parse_audio(file.section("audio_config"))
    if audio.output_size != language.hidden_size:
        raise CheckpointError(
            f"{file.label}: audio_config.output_dim {audio.output_size} differs from hidden_size {language.hidden_size}"
        )
    size = language.hidden_size
    if size % _RESAMPLER_HEAD_DIM:
        raise CheckpointError(f"{file.label}: hidden_size {size} is not a multiple of {_RESAMPLER_HEAD_DIM}")
    resampler = ResamplerConfig(
        num_queries=file.integer("query_num"),
        hidden_size=size,
        vision_size=vision.hidden_size,
        num_heads=size // _RESAMPLER_HEAD_DIM,
        layer_norm_eps=_RESAMPLER_NORM_EPS,
    )
    return ModelConfig(language=language, vision=vision, resampler=resampler, audio=audio)


def _parse_language(file: JsonFile) -> LanguageConfig:
    file.require("hidden_act", "silu", None)
    if "quantization_config" in file:
        raise CheckpointError(
            f"{file.label}: the weights are in another engine's low bits (quantization_config); give the original "
            "folder, or one that `tianquan quantize` wrote"
        )
    for key in ("rope_scaling", "rope_parameters", "sliding_window"):
        file.require(key, None, None)
    file.require("attention_bias", False, False)
    file.require("mlp_bias", False, False)
    hidden_size, num_heads = file.integer("hidden_size"), file.integer("num_attention_heads")
    num_kv_heads = file.integer("num_key_value_heads", default=num_heads)
    head_dim = file.integer("head_dim", default=hidden_size // num_heads)
    if num_heads % num_kv_heads or head_dim % 2 or (hidden_size % num_heads and "head_dim" not in file):
        raise CheckpointError(
            f"{file.label}: {num_heads} attention heads, {num_kv_heads} key-value heads and hidden_size "
            f"{hidden_size} do not fit together"
        )
    return LanguageConfig(
        hidden_size=hidden_size,
        intermediate_size=file.integer("intermediate_size"),
        num_layers=file.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=file.integer("vocab_size"),
        rms_norm_eps=file.number("rms_norm_eps"),
        rope_theta=file.number("rope_theta"),
        max_position_embeddings=file.integer("max_position_embeddings"),
        tie_word_embeddings=file.flag("tie_word_embeddings", default=False),
    )


def _parse_vision(file: JsonFile) -> VisionConfig:
    vision = file.section("vision_config")
    vision.require("hidden_act", "gelu_pytorch_tanh", None)
    vision.require("num_channels", 3, 3)
    patch_size = vision.integer("patch_size")
    file.require("patch_size", patch_size, patch_size)
    hidden_size, num_heads = vision.integer("hidden_size"), vision.integer("num_attention_heads")
    if hidden_size % num_heads:
        raise CheckpointError(f"{vision.label}: hidden_size {hidden_size} is not a multiple of {num_heads} heads")
    num_layers = vision.integer("num_hidden_layers") - file.flag("drop_vision_last_layer", default=False)
    if num_layers < 1:
        raise CheckpointError(f"{vision.label}: no layer is left without the last one; expected at least 2")
    image_size = vision.integer("image_size")
    if image_size < patch_size:
        raise CheckpointError(
            f"{vision.label}: image_size {image_size} is less than a patch; expected at least {patch_size}"
        )
    return VisionConfig(
        hidden_size=hidden_size,
        intermediate_size=vision.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        patch_size=patch_size,
        num_positions_per_side=image_size // patch_size,
        layer_norm_eps=vision.number("layer_norm_eps"),
    )


def _parse_audio(file: JsonFile) -> AudioConfig:
    file.require("avg_pool", True, None)
    file.require("add_audio_bos_eos_token", True, None)
    hidden_size, num_heads = file.integer("n_state"), file.integer("n_head")
    if hidden_size % num_heads:
        raise CheckpointError(f"{file.label}: n_state {hidden_size} is not a multiple of {num_heads} heads")
    return AudioConfig(
        num_mels=file.integer("n_mels"),
        max_frames=file.integer("n_ctx"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_layers=file.integer("n_layer"),
        output_size=file.integer("output_dim"),
        layer_norm_eps=_AUDIO_NORM_EPS,
    )


def parse_eos_token_ids(config: JsonFile) -> tuple[int, ...]:
    """Return the ids config.json (or generation_config.json) names as ends of an answer."""
    value = config.optional("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise CheckpointError(
            f"{config.label}: eos_token_id must be an integer or a list of them, got {reprlib.repr(value)}"
        )
    return tuple(ids)


def parse_processor_settings(file: JsonFile, config: ModelConfig) -> ProcessorSettings:
    """Return the processor settings of a preprocessor_config.json.

    Raises:
        CheckpointError: a missing key, or settings that do not fit the model.
    """
    file.require("sampling_rate", 16000, None)
    file.require("feature_size", config.audio.num_mels, None)
    file.require("image_feature_size", config.resampler.num_queries, None)
    file.require("patch_size", config.vision.patch_size, None)
    for key in ("norm_mean", "norm_std", "mean", "std"):
        value = file.optional(key)
        if value is not None and value not in (_NORM, [_NORM] * 3):
            raise CheckpointError(f"{file.label}: {key} is {reprlib.repr(value)}; only {_NORM} is supported")
    for key, supported in _AUDIO_FRONT_END.items():
        file.require(key, supported, supported)
    return ProcessorSettings(
        image=ImageSettings(
            scale_resolution=file.integer("scale_resolution"),
            patch_size=config.vision.patch_size,
            max_slices=file.integer("max_slice_nums"),
            slice_mode=file.flag("slice_mode", default=True),
            tokens_per_slice=config.resampler.num_queries,
        ),
        tokens=PlaceholderTokens(
            unknown=file.text("unk"),
            image_start=file.text("im_start"),
            image_end=file.text("im_end"),
            image_id_start=file.text("im_id_start"),
            image_id_end=file.text("im_id_end"),
            slice_start=file.text("slice_start"),
            slice_end=file.text("slice_end"),
            audio_start=file.text("audio_start", default="<|audio_start|>"),
            audio_end=file.text("audio_end", default="<|audio_end|>"),
        ),
        use_image_id=file.flag("use_image_id", default=True),
        num_mels=config.audio.num_mels,
        max_audio_frames=config.audio.max_frames,
    )


def read_sampling(folder: Path) -> SamplingParams:
    """Return how a checkpoint wants to be sampled: its generation_config.json, else the vendor's advice.

    Raises:
        CheckpointError: a value of the wrong type. What the sampler cannot use is refused when it is asked to.
    """
    if not is_present(folder / "generation_config.json"):
        return VENDOR_SAMPLING
    file = JsonFile.read(folder / "generation_config.json")
    if "do_sample" not in file and "temperature" not in file:
        return VENDOR_SAMPLING
    is_greedy = not file.flag("do_sample", True)
    return SamplingParams(
        temperature=0.0 if is_greedy else file.number("temperature") if "temperature" in file else 1.0,
        top_k=file.integer("top_k") if file.optional("top_k") and not is_greedy else 0,  # 0 and null turn it off
        top_p=file.number("top_p") if "top_p" in file and not is_greedy else 1.0,
        repetition_penalty=file.number("repetition_penalty") if "repetition_penalty" in file else 1.0,
        max_tokens=file.integer("max_new_tokens", VENDOR_SAMPLING.max_tokens),
    )


def read_chat_template(folder: Path, tokenizer_config: JsonFile) -> str:
    """Return the chat template: chat_template.jinja if there is one, else the one in tokenizer_config.json.

    Raises:
        CheckpointError: there is none, or its file cannot be read.
    """
    path = folder / "chat_template.jinja"
    if is_present(path):
        text = read_text(path, "utf-8-sig")  # an editor's byte order mark would become part of the prompt
        if not text.strip():
            raise CheckpointError(f"{path}: is empty; expected a chat template, download or copy it again")
        return text
    template = tokenizer_config.optional("chat_template")
    if isinstance(template, list):  # several named templates
        named = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next(named, {}).get("template")
    if not isinstance(template, str) or not template:
        raise CheckpointError(f"{tokenizer_config.label}: has no chat_template; this model needs one")
    return template


def read_special_token_strings(tokenizer_config: JsonFile) -> dict[str, str]:
    """Return bos_token, eos_token, ... as the strings a chat template may use; absent ones are left out."""
    strings = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = tokenizer_config.optional(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            strings[key] = value
    return strings
