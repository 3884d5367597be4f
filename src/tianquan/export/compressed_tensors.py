"""A folder of the official layout with the language model in low bits, as compressed-tensors, which vLLM reads.

Of a matrix NAME (O, I) of the language model's layers there are, in place of NAME.weight,

    NAME.weight_packed  int32 (O, I * bits / 32): codes + 2^(bits - 1), the first column in the lowest bits of a word
    NAME.weight_scale   float16 (O, G)
    NAME.weight_shape   int64 (2): O, I

Everything else (embedding, head, norms, both encoders, resampler) stays as the source has it: vLLM's kernels for these
formats multiply matrices of layers. config.json says so under `quantization_config`.

Legend: O out channels, I in channels, G groups, P panels of 8 out channels.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import Ops
from tianquan.checkpoint.loader import Checkpoint, TensorFiles, is_finite
from tianquan.checkpoint.low_bit import COPIED_FILES
from tianquan.checkpoint.names import is_ignored, stored_name
from tianquan.checkpoint.new_folder import check_new_folder, new_folder
from tianquan.checkpoint.plain_file import is_present
from tianquan.checkpoint.safetensors_file import SafetensorsWriter
from tianquan.checkpoint.tensor_list import NeededWeight, needed_weights
from tianquan.errors import CheckpointError
from tianquan.quantization.format import PANEL, QuantFormat, QuantizedTensor, unpack
from tianquan.quantization.recipes import Recipe

OnProgress = Callable[[int, int], None]  # (matrices written, matrices there are)
Entries = dict[str, tuple[str, tuple[int, ...]]]  # name -> (safetensors dtype, shape)

_LAYERS = "language_model.layers."
_WORD_BITS = 32
# What stays dense, by the names of modules: compressed-tensors takes "re:" and a regular expression.
_DENSE_MODULES = ["re:.*lm_head", "re:vision.*", "re:audio.*"]


def save_compressed_tensors(
    checkpoint: Checkpoint, recipe: Recipe, output: Path, ops: Ops, on_progress: OnProgress = lambda *_: None
) -> None:
    """Write the folder. It appears whole or not at all.

    Args:
        checkpoint: of the official layout.
        recipe: its format for the language model's matrices is used: int4 or int8, symmetric.
        output: a folder that does not exist yet, or is empty.
        ops: quantizes.
        on_progress: told after each matrix.

    Raises:
        CheckpointError: a low-bit folder, a recipe without such a format, sizes it cannot hold, or no room.
    """
    if not isinstance(checkpoint.files, TensorFiles):
        raise CheckpointError(
            f"{checkpoint.folder}: is a low-bit folder; export the original checkpoint, whose bits are then lost once"
        )
    files = checkpoint.files
    matrices = {
        stored_name(weight.name).weight: weight
        for weight in needed_weights(checkpoint.config)
        if weight.is_matrix and weight.name.startswith(_LAYERS)
    }
    format = _format(recipe, matrices)
    entries: Entries = {}
    for name, tensor in files.tensors.items():
        if name in matrices:
            entries |= _packed_entries(name, matrices[name], format)
        elif not is_ignored(name):
            entries[name] = (tensor.dtype, tensor.shape)
    weights = checkpoint.weights(recipe, ops)
    output = check_new_folder(output)
    size = sum(math.prod(shape) * _BYTES[dtype] for dtype, shape in entries.values())
    with new_folder(output, size) as folder:
        for name in COPIED_FILES:
            if is_present(checkpoint.folder / name):
                shutil.copyfile(checkpoint.folder / name, folder / name)
        _say_how(folder / "config.json", format)
        with SafetensorsWriter(folder / "model.safetensors", entries) as writer:
            for name in entries.keys() & files.tensors.keys():
                dense = files.dense(name)
                if not is_finite(dense):
                    raise CheckpointError(f"{checkpoint.folder}: {name} has infinite or NaN values; download it again")
                writer.write(name, dense.data)
            for done, (name, weight) in enumerate(matrices.items(), 1):
                quantized = weights.weight(weight.name, weight.shape[1], weight.shape[0])
                assert isinstance(quantized, QuantizedTensor)
                for part, values in packed(quantized).items():
                    writer.write(f"{name}_{part}", values)
                on_progress(done, len(matrices))


_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8}


def _format(recipe: Recipe, matrices: dict[str, NeededWeight]) -> QuantFormat:
    formats = {recipe.format_of(weight.name) for weight in matrices.values()}
    format = formats.pop() if len(formats) == 1 else None
    if not isinstance(format, QuantFormat) or not format.symmetric:
        raise CheckpointError(
            f"recipe {recipe.name} has no one symmetric low-bit format for the language model; use int4, int4-small "
            "or int8"
        )
    for name, weight in matrices.items():
        if weight.shape[1] % format.group_size:
            raise CheckpointError(
                f"{name} has rows of {weight.shape[1]} values, expected a multiple of {format.group_size} for {format}"
            )
    return format


def _packed_entries(name: str, weight: NeededWeight, format: QuantFormat) -> Entries:
    rows, columns = weight.shape
    return {
        f"{name}_packed": ("I32", (rows, columns * format.bits // _WORD_BITS)),
        f"{name}_scale": ("F16", (rows, columns // format.group_size)),
        f"{name}_shape": ("I64", (2,)),
    }


def packed(tensor: QuantizedTensor) -> dict[str, npt.NDArray[Any]]:
    """Return the parts of a weight by the ends of their names."""
    rows, columns = tensor.shape
    bits = tensor.format.bits
    codes = unpack(tensor.codes, tensor.format).reshape(-1, columns)[:rows]  # (O, I)
    unsigned = (codes.astype(np.int32) + (1 << (bits - 1))).astype(np.uint32)
    per_word = _WORD_BITS // bits
    words = np.zeros((rows, columns // per_word), np.uint32)
    for place in range(per_word):
        words |= unsigned[:, place::per_word] << np.uint32(bits * place)
    scales = tensor.scales.transpose(0, 2, 1).reshape(len(tensor.scales) * PANEL, -1)[:rows]  # (O, G)
    return {
        "packed": words.view(np.int32),
        "scale": np.ascontiguousarray(scales),
        "shape": np.array(tensor.shape, np.int64),
    }


def _say_how(path: Path, format: QuantFormat) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    weights = {
        "num_bits": format.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": format.group_size,
        "dynamic": False,
    }
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": _DENSE_MODULES,
        "kv_cache_scheme": None,
    }
    path.write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
