"""A low-bit folder of the official size with weights that mean nothing: speed and memory do not depend on them.

The folder is made directly in low bits, 2.8 GB for int4, and loads like any other. Its vocabulary has the
official number of tokens, so that loading it takes as long.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import StoredWeight
from tianquan.backends.reference import ReferenceOps
from tianquan.checkpoint.config_files import JsonFile, parse_config
from tianquan.checkpoint.layout_files import SPECIAL_TOKENS, preprocessor_config, tokenizer_config
from tianquan.checkpoint.low_bit import save_low_bit
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.checkpoint.weight_reader import StoredWeights
from tianquan.config import ModelConfig
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import INT8_MAX, QuantFormat, QuantizedTensor
from tianquan.quantization.recipes import Recipe

_PATTERN_BYTES = 1 << 20  # of random data, repeated: the kernels' time does not depend on the values
_VOCAB_SIZE = 122880
_FIRST_SPECIAL_ID = 120000
OFFICIAL_CONFIG: dict[str, Any] = {
    "model_type": "megrezo",
    "hidden_act": "silu",
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "intermediate_size": 7168,
    "vocab_size": _VOCAB_SIZE,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e6,
    "eos_token_id": 120005,
    "query_num": 64,
    "patch_size": 14,
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 980,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "audio_config": {
        "n_mels": 128,
        "n_ctx": 1500,
        "n_state": 1280,
        "n_head": 20,
        "n_layer": 32,
        "output_dim": 2560,
        "avg_pool": True,
        "add_audio_bos_eos_token": True,
    },
}


def write_synthetic_folder(folder: Path, recipe: Recipe, config: dict[str, Any] | None = None) -> None:
    """Write a low-bit folder with synthetic weights.

    Args:
        folder: a new folder.
        recipe: the formats of its weights.
        config: a config.json; that of the official checkpoint by default.
    """
    config = config or OFFICIAL_CONFIG
    sources = folder.parent / f".{folder.name}.sources"
    sources.mkdir(parents=True)
    try:
        files = {
            "config.json": config,
            "preprocessor_config.json": preprocessor_config(
                num_mels=128, num_queries=64, scale_resolution=448, max_slices=9
            ),
            "tokenizer.json": _tokenizer(),
            "tokenizer_config.json": tokenizer_config(),
        }
        for name, content in files.items():
            (sources / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        parsed = parse_config(JsonFile("config.json", config))
        save_low_bit(sources, parsed, SyntheticWeights(parsed, recipe), recipe, folder)
    finally:
        for path in sources.iterdir():
            path.unlink()
        sources.rmdir()


def _tokenizer() -> dict[str, Any]:
    """Return a byte-level BPE of the official size: all pairs of the first merges, up to 120000 tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(n) for n in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    vocab = {character: n for n, character in enumerate(characters)}
    merges = []
    for first in characters:
        for second in characters:
            merges.append([first, second])
            vocab.setdefault(first + second, len(vocab))
    for pair in list(vocab)[256:]:
        for third in characters[:1]:
            if len(vocab) < _FIRST_SPECIAL_ID:
                merges.append([pair, third])
                vocab.setdefault(pair + third, len(vocab))
    added = [
        {
            "id": _FIRST_SPECIAL_ID + n,
            "content": token,
            "special": True,
            "normalized": False,
            "lstrip": False,
            "rstrip": False,
            "single_word": False,
        }
        for n, token in enumerate(SPECIAL_TOKENS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


class SyntheticWeights(StoredWeights):
    """Weights made on the spot, in the format the recipe asks for."""

    def __init__(self, config: ModelConfig, recipe: Recipe) -> None:
        super().__init__(ReferenceOps())
        self._needed = {weight.name: weight for weight in needed_weights(config)}
        self._recipe = recipe
        self._pattern = np.random.default_rng(0).integers(0, 256, _PATTERN_BYTES, np.uint8)

    def weight(self, name: str, in_features: int, out_features: int) -> StoredWeight:
        """See `WeightReader.weight`."""
        format = self._recipe.format_of(name)
        spread = 1.0 / np.sqrt(in_features)  # keeps activations of the size a trained model has
        if not isinstance(format, QuantFormat):
            values = self._fill((out_features, in_features), np.uint8).astype(np.float32) / 128.0 - 1.0
            return DenseTensor((values * spread).astype(np.float32), "float32").cast(format)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for part, (shape, dtype) in format.array_shapes((out_features, in_features)).items():
            if part == "codes":
                codes = self._fill(shape, np.uint8)
                arrays[part] = codes if format.bits == 4 else (codes % (2 * INT8_MAX + 1)).astype(np.int8) - INT8_MAX
            else:
                largest = 8 if format.bits == 4 else INT8_MAX
                value = spread / largest if part == "scales" else largest
                arrays[part] = np.full(shape, value, dtype)
        if format.bits == 8:
            arrays["codes"] = arrays["codes"].astype(np.int8)
        return QuantizedTensor.from_arrays(format, (out_features, in_features), arrays)

    def vector(self, name: str) -> DenseTensor:
        """See `WeightReader.vector`."""
        shape = self._needed[name].shape
        values = np.ones(shape) if len(shape) == 1 else np.random.default_rng(1).normal(0, 0.02, shape)
        return DenseTensor(values.astype(np.float32), "float32")

    def bias(self, name: str) -> DenseTensor:
        """See `WeightReader.bias`."""
        return DenseTensor(np.zeros(self._needed[name].bias_size, np.float32), "float32")

    def _fill(self, shape: tuple[int, ...], dtype: type[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.resize(self._pattern, shape).astype(dtype, copy=False)
