"""Saved low-bit folders: the weights as they run, mapped from disk, with all that is needed beside them.

    config.json, tokenizer.json, ...   copies of the original's files
    quantization.json                  format_version, recipe, and size and checksum of every other file; for a
                                       folder fitted to records, calibration: how many, what was left out
    COMPONENT.safetensors              language_model, vision, resampler, audio; tensors under our names:
                                       NAME.codes, NAME.scales, NAME.zero_points  a low-bit matrix
                                       NAME.weight                               a dense matrix or vector
                                       NAME.bias

Nothing is converted at load: a file is mapped, its checksum compared, and the kernels read it where it lies.
Sizes and the copied files are checked when the folder is opened, a tower's file when the tower is first used.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import Ops, StoredWeight
from tianquan.checkpoint.config_files import JsonFile
from tianquan.checkpoint.new_folder import check_new_folder, new_folder
from tianquan.checkpoint.plain_file import file_size, is_present
from tianquan.checkpoint.safetensors_file import SafetensorsFile, SafetensorsWriter, map_bytes
from tianquan.checkpoint.tensor_list import NeededWeight, needed_weights
from tianquan.checkpoint.weight_reader import OnProgress, StoredWeights
from tianquan.config import ModelConfig
from tianquan.errors import CheckpointError
from tianquan.quantization.dense import DenseFormat, DenseTensor
from tianquan.quantization.format import QuantFormat, QuantizedTensor
from tianquan.quantization.recipes import Recipe

MANIFEST = "quantization.json"
FORMAT_VERSION = 1
COPIED_FILES = (  # what a folder needs beside weights
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
_WORD = 8  # bytes of the words a checksum adds up
_ROW_WORDS = 1 << 11
_BLOCK_ROWS = 1 << 6  # 1 MiB for both sums of a block: the second finds it in the cache (0.1 s per GB in all)
_READERS = 4  # threads that add up a file: numpy does it without the lock of the interpreter
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
    """Return a checksum of a file at about the speed memory is read.

    The file is cut in blocks, and a block is a table of 64-bit words; the sums of its rows and of its columns,
    modulo 2^64, and the bytes after the last whole block are hashed. So any one changed word shows, and any two
    swapped ones: in one row the columns tell, in one column the rows. Changes that keep every row and every
    column sum do not show: it guards against damage, not against attack.

    Raises:
        CheckpointError: the file cannot be read.
    """
    hashed = hashlib.blake2b(digest_size=16)
    if file_size(path) == 0:  # cannot be mapped
        return hashed.hexdigest()
    data = map_bytes(path)
    block_bytes = _BLOCK_ROWS * _ROW_WORDS * _WORD
    whole = len(data) // block_bytes * block_bytes

    def sums_of(start: int) -> bytes:
        block = data[start : start + block_bytes].view(np.uint64).reshape(_BLOCK_ROWS, _ROW_WORDS)
        rows, columns = (block.sum(axis=axis, dtype=np.uint64) for axis in (1, 0))
        return rows.tobytes() + columns.tobytes()

    with ThreadPoolExecutor(_READERS) as readers:
        for sums in readers.map(sums_of, range(0, whole, block_bytes)):
            hashed.update(sums)
    hashed.update(data[whole:].tobytes())
    return hashed.hexdigest()


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


def save_low_bit(
    source_folder: Path,
    config: ModelConfig,
    weights: StoredWeights,
    recipe: Recipe,
    output: Path,
    calibration: Mapping[str, Any] | None = None,
) -> None:
    """Write a low-bit folder. It appears whole or not at all.

    Args:
        source_folder: where the tokenizer and config files are copied from.
        config: the model's configuration.
        weights: the original's weights, already in the recipe's formats.
        recipe: what those formats are.
        output: a folder that does not exist yet, or is empty.
        calibration: what the manifest says of it, read when all weights are written.

    Raises:
        CheckpointError: the output exists, is no folder of its own, cannot be written, or the disk is too small.
    """
    output = check_new_folder(output)
    needed = needed_weights(config)
    size = sum(_num_bytes(entry) for w in needed for entry in stored_entries(w, recipe).values())
    with new_folder(output, size) as temporary:
        files = _write_files(temporary, source_folder, needed, weights, recipe)
        manifest: dict[str, Any] = {"format_version": FORMAT_VERSION, "recipe": recipe.to_dict(), "files": files}
        if calibration is not None:
            manifest["calibration"] = dict(calibration)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _num_bytes(entry: Entry) -> int:
    itemsize = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}[entry[0]]
    return math.prod(entry[1]) * itemsize


def _write_files(
    folder: Path, source: Path, needed: Sequence[NeededWeight], weights: StoredWeights, recipe: Recipe
) -> dict[str, Any]:
    """Write all files but the manifest; return what it says of them."""
    files = {}
    for name in COPIED_FILES:
        if is_present(source / name):
            shutil.copyfile(source / name, folder / name)
            files[name] = _describe(folder / name)
    for component in dict.fromkeys(weight.component for weight in needed):
        members = [weight for weight in needed if weight.component == component]
        entries = {name: entry for weight in members for name, entry in stored_entries(weight, recipe).items()}
        path = folder / f"{component}.safetensors"
        with SafetensorsWriter(path, entries) as writer:
            for weight in members:
                for name, array in _arrays(weight, weights):
                    writer.write(name, array)
        files[path.name] = _describe(path)
    return files


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": file_size(path), "checksum": checksum(path)}


def _arrays(weight: NeededWeight, weights: StoredWeights) -> Iterator[tuple[str, npt.NDArray[Any]]]:
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
    num_calibration_records: int | None = None  # None: rounded to nearest
    num_not_calibrated: int = 0  # matrices that too few rows of them went through

    @classmethod
    def open(cls, folder: Path, config: ModelConfig) -> LowBitFolder:
        """Read the manifest and compare it with what the configuration needs.

        Raises:
            CheckpointError: it is damaged, from a newer version, a file is missing or of another size, or a copied
                file is not the one that was saved.
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
            files[name] = _listed_file(folder, listed, name)
        for name in COPIED_FILES:
            if name in listed:
                _check_file(folder / name, _listed_file(folder, listed, name)[1])
            elif is_present(folder / name):
                raise CheckpointError(f"{folder / name}: is not in {MANIFEST}; remove it or save the folder again")
        calibration = manifest.optional("calibration")
        if calibration is None:
            return cls(folder, recipe, files, entries)
        section = manifest.section("calibration")
        nearest = section.optional("rounded_to_nearest")
        not_calibrated = len(nearest) if isinstance(nearest, list) else 0
        return cls(folder, recipe, files, entries, section.integer("records"), not_calibrated)

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
        _check_file(path, self.files[name][1])
        file = SafetensorsFile(path)
        stored = {tensor: (entry.dtype, entry.shape) for tensor, entry in file.tensors.items()}
        if stored != self.entries[component]:
            raise CheckpointError(f"{path}: its tensors are not those of its config and recipe; save the folder again")
        return file


def _listed_file(folder: Path, listed: JsonFile, name: str) -> tuple[int, str]:
    """Return the size and checksum the manifest gives, after comparing the size with the file's."""
    described = listed.section(name)
    expected = described.integer("bytes")
    actual = file_size(folder / name)
    if actual != expected:
        raise CheckpointError(
            f"{folder / name}: has {actual} bytes, its manifest says {expected}; copy or save the folder again"
        )
    return expected, described.text("checksum")


def _check_file(path: Path, expected: str) -> None:
    if checksum(path) != expected:
        raise CheckpointError(f"{path}: its checksum differs from the manifest's; copy or save the folder again")


class LowBitWeights(StoredWeights):
    """The weights of a low-bit folder."""

    def __init__(self, folder: LowBitFolder, ops: Ops, on_progress: OnProgress | None = None) -> None:
        super().__init__(ops)
        self._folder = folder
        self._on_progress = on_progress
        self._files: dict[str, SafetensorsFile] = {}

    def weight(self, name: str, in_features: int, out_features: int) -> StoredWeight:
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
