"""Safetensors files, read by mapping them: headers are checked here, bytes are touched when used.

Layout: 8 bytes little-endian header size, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
The format's own library has no bfloat16 for numpy and copies; this one maps, and trusts nothing in the header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.checkpoint.plain_file import file_size
from tianquan.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library
_NUMPY_DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # the bits
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
}
_MAX_DIMENSIONS = 32  # what every numpy can hold
_MAX_NUMBER = 1 << 62  # of a shape or offset: products stay printable, sums stay in a file offset
_DATA_ALIGNMENT = 64  # bytes, of the start of the data in the file: a cache line


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    path: Path
    dtype: str  # safetensors name: F32, BF16, ...
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    nbytes: int

    @property
    def num_elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class SafetensorsFile:
    """One mapped file. The mapping lives as long as an array made from it does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = _read_header(path)
        self._bytes = map_bytes(path) if self.tensors else np.empty(0, np.uint8)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return a read-only array on the mapped bytes of `name`."""
        stored = self.tensors[name]
        flat = self._bytes[stored.offset : stored.offset + stored.nbytes]
        return flat.view(_NUMPY_DTYPES[stored.dtype]).reshape(stored.shape)


def map_bytes(path: Path) -> npt.NDArray[np.uint8]:
    """Return the bytes of a file that is not empty, mapped read-only.

    Raises:
        CheckpointError: it cannot be read, or no address space is left for it.
    """
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be mapped ({error.strerror})") from error


def _itemsize(dtype: str) -> int:
    return np.dtype(_NUMPY_DTYPES[dtype]).itemsize


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = file_size(path)
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            header_size = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or header_size > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path}: not a complete safetensors file ({size} bytes); download or copy it again"
                )
            header = json.loads(file.read(header_size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        raise CheckpointError(f"{path}: its safetensors header is damaged; download or copy it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its safetensors header is damaged; download or copy it again")
    data_start = 8 + header_size
    tensors = {
        name: _parse_entry(path, name, entry, data_start, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_contiguous(path, tensors, data_start, size)
    return tensors


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER  # bool and float are no counts


def _check_contiguous(path: Path, tensors: Mapping[str, StoredTensor], data_start: int, file_size: int) -> None:
    """Raise unless the tensors fill the data without a gap or an overlap, as the format demands."""
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != position:
            raise CheckpointError(
                f"{path}: tensor {name!r} starts at byte {tensor.offset}, expected {position} (a gap or an overlap); "
                "download or copy it again"
            )
        position += tensor.nbytes
    if position != file_size:
        raise CheckpointError(
            f"{path}: its tensors end at byte {position}, the file has {file_size}; download or copy it again"
        )


def _parse_entry(path: Path, name: str, entry: Any, data_start: int, file_size: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if (
        not isinstance(dtype, str)
        or not isinstance(shape, list)
        or not isinstance(offsets, list)
        or len(shape) > _MAX_DIMENSIONS
        or len(offsets) != 2
        or not all(_is_count(n) for n in (*shape, *offsets))
    ):
        raise CheckpointError(
            f"{path}: the header entry of tensor {name!r} is damaged; expected a dtype, a shape and two offsets; "
            "download or copy it again"
        )
    begin, end = offsets
    if dtype not in _NUMPY_DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {dtype[:20]}; expected one of {', '.join(_NUMPY_DTYPES)}"
        )
    expected = math.prod(shape) * np.dtype(_NUMPY_DTYPES[dtype]).itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{path}: tensor {name!r} has {end - begin} bytes; {dtype} {shape} needs {expected}; "
            "download or copy it again"
        )
    if data_start + end > file_size:
        raise CheckpointError(
            f"{path}: truncated: tensor {name!r} ends at byte {data_start + end}, the file has {file_size}; "
            "download or copy it again"
        )
    return StoredTensor(path, dtype, tuple(shape), data_start + begin, expected)


class SafetensorsWriter:
    """Writes a file tensor by tensor in any order, so that one at a time is in memory.

    The caller renames the file into place when it is complete. Tensors lie with wide types first, then by
    name, which keeps each aligned to its type.
    """

    def __init__(self, path: Path, entries: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Write the header.

        Args:
            path: file to create.
            entries: name -> (safetensors dtype, shape) of every tensor.
        """
        header: dict[str, Any] = {}
        offset = 0
        for name in sorted(entries, key=lambda name: (-_itemsize(entries[name][0]), name)):
            dtype, shape = entries[name]
            end = offset + math.prod(shape) * _itemsize(dtype)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-(8 + len(encoded)) % _DATA_ALIGNMENT)
        self._header = header
        self._missing = set(header)
        self._data_start = 8 + len(encoded)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)
        self._file.truncate(self._data_start + offset)

    def write(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write one tensor."""
        entry = self._header[name]
        assert array.dtype == _NUMPY_DTYPES[entry["dtype"]], (name, array.dtype, entry["dtype"])
        assert list(array.shape) == entry["shape"], (name, array.shape, entry["shape"])
        self._file.seek(self._data_start + entry["data_offsets"][0])
        self._file.write(np.ascontiguousarray(array).data)
        self._missing.discard(name)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        assert kind is not None or not self._missing, f"tensors never written: {sorted(self._missing)}"


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> None:
    """Write tensors given as (safetensors dtype, array)."""
    with SafetensorsWriter(path, {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}) as writer:
        for name, (_, array) in tensors.items():
            writer.write(name, array)
