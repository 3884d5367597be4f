"""The official checkpoint's tensor names, and how each of our weights lies in them. Known nowhere else.

Our names say what a weight does; theirs come from three code bases. `{n}` is the layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Layout = Literal[
    "as_is",  # stored in the shape we use: a matrix (out, in), a table, a vector
    "transposed",  # stored (in, out): applied as x @ w
    "patches",  # stored (out, 3, patch, patch): a convolution whose windows do not overlap
    "windows",  # stored (out, in, kernel): a convolution over frames; we use (out, kernel * in), kernel-major
    "third_0",  # rows of a packed query, key, value matrix (3 * out, in)
    "third_1",
    "third_2",
]


@dataclass(frozen=True)
class StoredName:
    """The tensor(s) one of our weights is read from."""

    weight: str
    bias: str | None = None
    layout: Layout = "as_is"


def _pair(prefix: str, layout: Layout = "as_is") -> StoredName:
    return StoredName(f"{prefix}.weight", f"{prefix}.bias", layout)


def _packed(third: Layout) -> StoredName:
    return StoredName("vision.resampler.attn.in_proj_weight", "vision.resampler.attn.in_proj_bias", third)


_LANGUAGE = "llm.model.layers.{n}"
_VISION = "vision.vpm.encoder.layers.{n}"
_AUDIO = "audio.audio.blocks.{n}"

STORED_NAMES: dict[str, StoredName] = {
    "language_model.embedding": StoredName("llm.model.embed_tokens.weight"),
    "language_model.layers.{n}.attention_norm": StoredName(f"{_LANGUAGE}.input_layernorm.weight"),
    "language_model.layers.{n}.attention.query": StoredName(f"{_LANGUAGE}.self_attn.q_proj.weight"),
    "language_model.layers.{n}.attention.key": StoredName(f"{_LANGUAGE}.self_attn.k_proj.weight"),
    "language_model.layers.{n}.attention.value": StoredName(f"{_LANGUAGE}.self_attn.v_proj.weight"),
    "language_model.layers.{n}.attention.output": StoredName(f"{_LANGUAGE}.self_attn.o_proj.weight"),
    "language_model.layers.{n}.mlp_norm": StoredName(f"{_LANGUAGE}.post_attention_layernorm.weight"),
    "language_model.layers.{n}.mlp.gate": StoredName(f"{_LANGUAGE}.mlp.gate_proj.weight"),
    "language_model.layers.{n}.mlp.up": StoredName(f"{_LANGUAGE}.mlp.up_proj.weight"),
    "language_model.layers.{n}.mlp.down": StoredName(f"{_LANGUAGE}.mlp.down_proj.weight"),
    "language_model.final_norm": StoredName("llm.model.norm.weight"),
    "language_model.head": StoredName("llm.lm_head.weight"),
    "vision.patch_projection": _pair("vision.vpm.embeddings.patch_embedding", "patches"),
    "vision.position_embedding": StoredName("vision.vpm.embeddings.position_embedding.weight"),
    "vision.layers.{n}.attention_norm": _pair(f"{_VISION}.layer_norm1"),
    "vision.layers.{n}.attention.query": _pair(f"{_VISION}.self_attn.q_proj"),
    "vision.layers.{n}.attention.key": _pair(f"{_VISION}.self_attn.k_proj"),
    "vision.layers.{n}.attention.value": _pair(f"{_VISION}.self_attn.v_proj"),
    "vision.layers.{n}.attention.output": _pair(f"{_VISION}.self_attn.out_proj"),
    "vision.layers.{n}.mlp_norm": _pair(f"{_VISION}.layer_norm2"),
    "vision.layers.{n}.mlp.up": _pair(f"{_VISION}.mlp.fc1"),
    "vision.layers.{n}.mlp.down": _pair(f"{_VISION}.mlp.fc2"),
    "vision.final_norm": _pair("vision.vpm.post_layernorm"),
    "resampler.query": StoredName("vision.resampler.query"),
    "resampler.input": StoredName("vision.resampler.kv_proj.weight"),
    "resampler.input_norm": _pair("vision.resampler.ln_kv"),
    "resampler.query_norm": _pair("vision.resampler.ln_q"),
    "resampler.attention.query": _packed("third_0"),
    "resampler.attention.key": _packed("third_1"),
    "resampler.attention.value": _packed("third_2"),
    "resampler.attention.output": _pair("vision.resampler.attn.out_proj"),
    "resampler.output_norm": _pair("vision.resampler.ln_post"),
    "resampler.output": StoredName("vision.resampler.proj", layout="transposed"),
    "audio.conv1": _pair("audio.audio.conv1", "windows"),
    "audio.conv2": _pair("audio.audio.conv2", "windows"),
    "audio.position_embedding": StoredName("audio.audio.positional_embedding"),
    "audio.layers.{n}.attention_norm": _pair(f"{_AUDIO}.attn_ln"),
    "audio.layers.{n}.attention.query": _pair(f"{_AUDIO}.attn.query"),
    "audio.layers.{n}.attention.key": StoredName(f"{_AUDIO}.attn.key.weight"),
    "audio.layers.{n}.attention.value": _pair(f"{_AUDIO}.attn.value"),
    "audio.layers.{n}.attention.output": _pair(f"{_AUDIO}.attn.out"),
    "audio.layers.{n}.mlp_norm": _pair(f"{_AUDIO}.mlp_ln"),
    "audio.layers.{n}.mlp.up": _pair(f"{_AUDIO}.mlp.0"),
    "audio.layers.{n}.mlp.down": _pair(f"{_AUDIO}.mlp.2"),
    "audio.final_norm": _pair("audio.audio.ln_post"),
    "audio.projection": _pair("audio.audio.proj"),
    "audio.begin_end": StoredName("audio.audio.audio_bos_eos_token.weight"),
}

# How the stored names of each component begin.
COMPONENT_PREFIXES = {
    "language_model": "llm.",
    "vision": "vision.vpm.",
    "resampler": "vision.resampler.",
    "audio": "audio.",
}

_LAYER_NUMBER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


def stored_name(name: str) -> StoredName:
    """Return where the weight we call `name` is read from."""
    match = _LAYER_NUMBER.search(name)
    template = STORED_NAMES[_LAYER_NUMBER.sub("{n}", name)]
    if match is None:
        return template
    number = match.group()
    bias = None if template.bias is None else template.bias.replace("{n}", number)
    return StoredName(template.weight.replace("{n}", number), bias, template.layout)


_PACKED_PARTS = {"third_0": "in_proj_query", "third_1": "in_proj_key", "third_2": "in_proj_value"}


def module_path(name: str) -> str:
    """Return the path of the module that holds the matrix we call `name`, as adapters name it.

    It is the tensor's name without `.weight`. The parts of the resampler's packed projection are modules of their own.
    """
    stored = stored_name(name)
    if stored.layout in _PACKED_PARTS:
        return stored.weight.removesuffix("in_proj_weight") + _PACKED_PARTS[stored.layout]
    return stored.weight.removesuffix(".weight")


def is_ignored(stored: str) -> bool:
    """Return whether a tensor of the file carries nothing: tables some exporters save that are recomputed."""
    return ".rotary_emb." in stored


def stored_shape(layout: Layout, in_features: int, out_features: int) -> tuple[int, ...]:
    """Return the shape in the file of a matrix that we use as (out_features, in_features)."""
    if layout == "transposed":
        return (in_features, out_features)
    if layout == "patches":
        patch = round((in_features / 3) ** 0.5)
        return (out_features, 3, patch, patch)
    if layout == "windows":
        return (out_features, in_features // 3, 3)
    if layout == "as_is":
        return (out_features, in_features)
    return (3 * out_features, in_features)
