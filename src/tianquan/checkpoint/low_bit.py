"""Saved low-bit folders: the weights as they run, mapped from disk, with all that is needed beside them.

    config.json, tokenizer.json, ...   copies of the original's files
    quantization.json                  format_version, recipe, and size and checksum of each weight file
    COMPONENT.safetensors              language_model, vision, resampler, audio; tensors under our names:
                                       NAME.codes, NAME.scales, NAME.zero_points  a low-bit matrix
                                       NAME.weight                               a dense matrix or vector
                                       NAME.bias

Nothing is converted at load: a file is mapped, its checksum compared, and the kernels read it where it lies.
A tower's file is opened when the tower is first used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import Ops, Weight
from tianquan.checkpoint.config_files import JsonFile
from tianquan.checkpoint.safetensors_file import SafetensorsFile, SafetensorsWriter
from tianquan.checkpoint.tensor_list import NeededWeight, needed_weights
from tianquan.checkpoint.weight_reader import OnProgress, WeightReader
from tianquan.config import ModelConfig
from tianquan.errors import CheckpointError
from tianquan.quantization.dense import DenseFormat, DenseTensor
from tianquan.quantization.format import QuantFormat, QuantizedTensor
from tianquan.quantization.recipes import Recipe

MANIFEST = "quantization.json"
FORMAT_VERSION = 1
_COPIED_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
_CHECKSUM_CHUNK = 1 << 16  # bytes; each is one 64-bit sum, and the sums are hashed: any change or swap shows
_STORED_DTYPES: dict[str, str] = {
    "uint8": "U8",
    "int8": "I8",
    "float16": "F16",
    "float32": "F32",
    "uint16": "BF16",
}
_DENSE_FORMATS: dict[str, DenseFormat] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Entry = tuple[str, tuple[int, ...]]  # safetensors dtype and shape


def checksum(path: Path) -> str:
    """Return a checksum of a file at the speed memory is read: it guards against damage, not against attack."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    whole = len(data) // _CHECKSUM_CHUNK * _CHECKSUM_CHUNK
    sums = data[:whole].view(np.uint64).reshape(-1, _CHECKSUM_CHUNK // 8).sum(axis=1, dtype=np.uint64)
    return hashlib.blake2b(sums.tobytes() + data[whole:].tobytes(), digest_size=16).hexdigest()


def stored_entries(weight: NeededWeight, recipe: Recipe) -> dict[str, Entry]:
    """Return name -> (dtype, shape) of the tensors a weight is saved as."""
    format = weight.format(recipe)
    if isinstance(format, QuantFormat):
        arrays = format.array_shapes((weight.shape[0], weight.shape[1]))
        entries = {
            f"{weight.name}.{part}": (_STORED_DTYPES[np.dtype(dtype).name], shape)
            for part, (shape, dtype) in arrays.items()
        }
    else:
        dtype = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[format]
        entries = {f"{weight.name}.weight": (dtype, weight.shape)}
    if weight.bias_size:
        entries[f"{weight.name}.bias"] = ("F32", (weight.bias_size,))
    return entries


def save_low_bit(source_folder: Path, config: ModelConfig, weights: WeightReader, recipe: Recipe, output: Path) -> None:
    """Write a low-bit folder. It appears whole or not at all.

    Args:
        source_folder: where the tokenizer and config files are copied from.
        config: the model's configuration.
        weights: the original's weights, already in the recipe's formats.
        recipe: what those formats are.
        output: a folder that does not exist yet, or is empty.

    Raises:
        CheckpointError: the output exists, cannot be written, or the disk is too small.
    """
    needed = needed_weights(config)
    size = sum(_num_bytes(entry) for w in needed for entry in stored_entries(w, recipe).values())
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output}: exists already; name a new folder")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if free < size:
            raise CheckpointError(f"{output.parent}: {free / 1e9:.1f} GB free, {size / 1e9:.1f} GB needed")
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            _write_folder(temporary, source_folder, needed, weights, recipe)
            os.replace(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written ({error.strerror})") from error


def _num_bytes(entry: Entry) -> int:
    itemsize = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}[entry[0]]
    return math.prod(entry[1]) * itemsize


def _write_folder(
    folder: Path, source: Path, needed: Sequence[NeededWeight], weights: WeightReader, recipe: Recipe
) -> None:
    folder.chmod(0o755)  # mkdtemp makes it private
    for name in _COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    files = {}
    for component in dict.fromkeys(weight.component for weight in needed):
        members = [weight for weight in needed if weight.component == component]
        entries = {name: entry for weight in members for name, entry in stored_entries(weight, recipe).items()}
        path = folder / f"{component}.safetensors"
        with SafetensorsWriter(path, entries) as writer:
            for weight in members:
                for name, array in _arrays(weight, weights):
                    writer.write(name, array)
        files[path.name] = {"bytes": path.stat().st_size, "checksum": checksum(path)}
    manifest = {"format_version": FORMAT_VERSION, "recipe": recipe.to_dict(), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _arrays(weight: NeededWeight, weights: WeightReader) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    if not weight.is_matrix:
        yield f"{weight.name}.weight", weights.vector(weight.name).to_float32()
    else:
        matrix = weights.weight(weight.name, weight.shape[1], weight.shape[0])
        if isinstance(matrix, QuantizedTensor):
            for part, array in matrix.to_arrays().items():
                yield f"{weight.name}.{part}", array
        else:
            yield f"{weight.name}.weight", matrix.data
    if weight.bias_size:
        yield f"{weight.name}.bias", weights.bias(weight.name).to_float32()


@dataclass(frozen=True)
class LowBitFolder:
    """An opened low-bit folder whose manifest is checked; its weight files are opened on first use."""

    folder: Path
    recipe: Recipe
    files: dict[str, tuple[int, str]]  # file name -> bytes, checksum
    entries: dict[str, dict[str, Entry]]  # component -> its tensors

    @classmethod
    def open(cls, folder: Path, config: ModelConfig) -> LowBitFolder:
        """Read the manifest and compare it with what the configuration needs.

        Raises:
            CheckpointError: it is damaged, from a newer version, or a file is missing or of another size.
        """
        manifest = JsonFile.read(folder / MANIFEST)
        version = manifest.integer("format_version")
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{manifest.label}: format_version {version} is newer than this program's {FORMAT_VERSION}; "
                "upgrade tianquan or save the folder again"
            )
        recipe_section, listed = manifest.optional("recipe"), manifest.section("files")
        recipe = Recipe.from_dict(recipe_section if isinstance(recipe_section, dict) else {})
        entries: dict[str, dict[str, Entry]] = {}
        for weight in needed_weights(config):
            entries.setdefault(weight.component, {}).update(stored_entries(weight, recipe))
        files = {}
        for component in entries:
            name = f"{component}.safetensors"
            described = listed.section(name)
            expected = described.integer("bytes")
            files[name] = (expected, described.text("checksum"))
            try:
                actual = (folder / name).stat().st_size
            except OSError as error:
                raise CheckpointError(f"{folder / name}: not found; copy or save the folder again") from error
            if actual != expected:
                raise CheckpointError(
                    f"{folder / name}: has {actual} bytes, its manifest says {expected}; copy or save the folder again"
                )
        return cls(folder, recipe, files, entries)

    def component_bytes(self) -> dict[str, int]:
        """Return the bytes of each component's file."""
        return {name.removesuffix(".safetensors"): size for name, (size, _) in self.files.items()}

    def map_component(self, component: str) -> SafetensorsFile:
        """Map one component's file.

        Raises:
            CheckpointError: its bytes or its tensors are not those that were saved.
        """
        name = f"{component}.safetensors"
        path = self.folder / name
        if checksum(path) != self.files[name][1]:
            raise CheckpointError(f"{path}: its checksum differs from the manifest's; copy or save the folder again")
        file = SafetensorsFile(path)
        stored = {tensor: (entry.dtype, entry.shape) for tensor, entry in file.tensors.items()}
        if stored != self.entries[component]:
            raise CheckpointError(f"{path}: its tensors are not those of its config and recipe; save the folder again")
        return file


class LowBitWeights(WeightReader):
    """The weights of a low-bit folder."""

    def __init__(self, folder: LowBitFolder, ops: Ops, on_progress: OnProgress | None = None) -> None:
        super().__init__(ops)
        self._folder = folder
        self._on_progress = on_progress
        self._files: dict[str, SafetensorsFile] = {}

    def weight(self, name: str, in_features: int, out_features: int) -> Weight:
        """See `WeightReader.weight`."""
        format = self._folder.recipe.format_of(name)
        if not isinstance(format, QuantFormat):
            return self._dense(f"{name}.weight")
        parts = format.array_shapes((out_features, in_features))
        file = self._file(name)
        arrays = {part: file.read(f"{name}.{part}") for part in parts}
        return QuantizedTensor.from_arrays(format, (out_features, in_features), arrays)

    def vector(self, name: str) -> DenseTensor:
        """See `WeightReader.vector`."""
        return self._dense(f"{name}.weight")

    def bias(self, name: str) -> DenseTensor:
        """See `WeightReader.bias`."""
        return self._dense(f"{name}.bias")

    def _dense(self, stored: str) -> DenseTensor:
        file = self._file(stored)
        return DenseTensor(file.read(stored), _DENSE_FORMATS[file.tensors[stored].dtype])

    def _file(self, name: str) -> SafetensorsFile:
        component = name.partition(".")[0]
        if component not in self._files:
            size = self._folder.files[f"{component}.safetensors"][0]
            if self._on_progress is not None:
                self._on_progress(component, 0, size)
            self._files[component] = self._folder.map_component(component)
            if self._on_progress is not None:
                self._on_progress(component, size, size)
        return self._files[component]
