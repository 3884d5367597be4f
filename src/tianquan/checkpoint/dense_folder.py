"""Writing the official layout: the tensors under their own names and in their own shapes, in shards with an index.

What comes out loads wherever the original does.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tianquan.checkpoint.loader import TensorFiles
from tianquan.checkpoint.low_bit import COPIED_FILES
from tianquan.checkpoint.names import StoredName, is_ignored, stored_name, stored_shape
from tianquan.checkpoint.new_folder import check_new_folder, new_folder
from tianquan.checkpoint.plain_file import is_present
from tianquan.checkpoint.safetensors_file import SafetensorsWriter
from tianquan.checkpoint.tensor_list import NeededWeight, needed_weights
from tianquan.checkpoint.weight_reader import WeightReader
from tianquan.config import ModelConfig
from tianquan.errors import CheckpointError
from tianquan.quantization.adapted import to_float32
from tianquan.quantization.dense import DenseFormat, DenseTensor

Float32 = npt.NDArray[np.float32]

MAX_SHARD_BYTES = 4_000_000_000  # as the original has them: two shards of 4 GB
_STORED_DTYPES: dict[DenseFormat, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


# Of transformers' own loading, with the code that config.json names: copied, never run.
_LOADERS_FILES = ("special_tokens_map.json", "added_tokens.json")


def source_format(files: TensorFiles) -> DenseFormat:
    """Return the widest format of a checkpoint's tensors: what is written is not narrower than what was read."""
    dtypes = {tensor.dtype for name, tensor in files.tensors.items() if not is_ignored(name)}
    if dtypes == {"BF16"}:
        return "bfloat16"
    return "float16" if dtypes == {"F16"} else "float32"


class DenseWeights(Protocol):
    """Weights by our names, as float32."""

    def matrix(self, name: str, in_features: int, out_features: int) -> Float32:
        """Return a matrix (out, in)."""
        ...

    def vector(self, name: str) -> Float32:
        """Return a table or vector that is no matrix product."""
        ...

    def bias(self, name: str) -> Float32:
        """Return the bias of a matrix or a norm."""
        ...


class ReadWeights:
    """The weights a reader gives in float32: of a checkpoint, with an adapter or without."""

    def __init__(self, reader: WeightReader) -> None:
        self._reader = reader

    def matrix(self, name: str, in_features: int, out_features: int) -> Float32:
        """See `DenseWeights.matrix`."""
        return to_float32(self._reader.weight(name, in_features, out_features))

    def vector(self, name: str) -> Float32:
        """See `DenseWeights.vector`."""
        return self._reader.vector(name).to_float32()

    def bias(self, name: str) -> Float32:
        """See `DenseWeights.bias`."""
        return self._reader.bias(name).to_float32()


def to_stored_layout(matrix: Float32, stored: StoredName) -> Float32:
    """Return a matrix (out, in) in the shape it has in the file; see `names.Layout`. A third stays a third."""
    out_features, in_features = matrix.shape
    if stored.layout == "transposed":
        return np.ascontiguousarray(matrix.T)
    if stored.layout == "windows":
        return np.ascontiguousarray(matrix.reshape(out_features, 3, in_features // 3).transpose(0, 2, 1))
    if stored.layout == "patches":
        return matrix.reshape(stored_shape("patches", in_features, out_features))
    return matrix


def save_dense(
    source_folder: Path, config: ModelConfig, weights: DenseWeights, format: DenseFormat, output: Path
) -> None:
    """Write a folder of the official layout. It appears whole or not at all.

    Args:
        source_folder: where the tokenizer and config files are copied from.
        config: the model's configuration.
        weights: what to write.
        format: of every tensor.
        output: a folder that does not exist yet, or is empty.

    Raises:
        CheckpointError: the output cannot be written, or a value is beyond the format.
    """
    output = check_new_folder(output)
    shapes = {name: shape for weight in needed_weights(config) for name, shape in weight.stored_shapes().items()}
    itemsize = 4 if format == "float32" else 2
    with new_folder(output, itemsize * sum(math.prod(shape) for shape in shapes.values())) as folder:
        for name in (*COPIED_FILES, *_LOADERS_FILES, *(path.name for path in sorted(source_folder.glob("*.py")))):
            if is_present(source_folder / name):
                shutil.copyfile(source_folder / name, folder / name)
        _mark_format(folder / "config.json", format)
        shards = _plan_shards(config, itemsize)
        weight_map: dict[str, str] = {}
        for n, members in enumerate(shards, 1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{n:05d}-of-{len(shards):05d}.safetensors"
            names = [name for weight in members for name in weight.stored_shapes()]
            entries = {name: (_STORED_DTYPES[format], shapes[name]) for name in names}
            with SafetensorsWriter(folder / file, entries) as writer:
                for name, values in _stored_tensors(members, weights):
                    writer.write(name, _cast(name, values, format))
            weight_map.update(dict.fromkeys(names, file))
        if len(shards) > 1:
            size = itemsize * sum(math.prod(shape) for shape in shapes.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            text = json.dumps(index, indent=1) + "\n"
            (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _mark_format(path: Path, format: DenseFormat) -> None:
    """Say in config.json what the tensors are now, which other software believes."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["torch_dtype"] = format
    path.write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _plan_shards(config: ModelConfig, itemsize: int) -> list[list[NeededWeight]]:
    """Return the weights of each shard; the thirds of a packed matrix, which follow one another, stay together."""
    shards: list[list[NeededWeight]] = [[]]
    size = 0
    for weight in needed_weights(config):
        nbytes = itemsize * weight.num_parameters
        is_later_third = stored_name(weight.name).layout in ("third_1", "third_2")
        if shards[-1] and size + nbytes > MAX_SHARD_BYTES and not is_later_third:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += nbytes
    return shards


def _stored_tensors(members: Sequence[NeededWeight], weights: DenseWeights) -> Iterator[tuple[str, Float32]]:
    """Yield the tensors of a shard; thirds are collected until the packed matrix is whole."""
    thirds: dict[str, list[Float32]] = {}
    for weight in members:
        stored = stored_name(weight.name)
        parts: list[tuple[str, Float32]] = []
        if weight.is_matrix:
            matrix = weights.matrix(weight.name, weight.shape[1], weight.shape[0])
            parts.append((stored.weight, to_stored_layout(matrix, stored)))
        else:
            parts.append((stored.weight, weights.vector(weight.name)))
        if weight.bias_size:
            assert stored.bias is not None, weight.name
            parts.append((stored.bias, weights.bias(weight.name)))
        if not stored.layout.startswith("third_"):
            yield from parts
            continue
        for name, values in parts:
            collected = thirds.setdefault(name, [])
            assert len(collected) == int(stored.layout[-1]), f"{weight.name}: thirds out of order"
            collected.append(values)
            if len(collected) == 3:
                yield name, np.concatenate(collected)


def _cast(name: str, values: Float32, format: DenseFormat) -> npt.NDArray[Any]:
    try:
        return DenseTensor(np.ascontiguousarray(values, np.float32), "float32").cast(format).data
    except OverflowError as error:
        raise CheckpointError(f"tensor {name!r}: {error}; write bfloat16 or float32") from error
