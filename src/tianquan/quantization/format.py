"""Low-bit weights as data: what a format is, how its bytes lie, and what numbers they stand for.

Legend: O out channels, I in channels, P panels of 8 out channels, G groups of `group_size` in channels.

A weight is scale * (code - zero_point), with one float16 scale (and, when asymmetric, one float16 zero
point) per out channel and group. Codes are kept in panels of 8 out channels because one 256-bit register
holds eight 32-bit sums; `kernels/csrc/layout.h` draws the same bytes and the tests compare the two.

    int4  codes (P, 4 * G * group_size) uint8, in units of 32 bytes = 8 out x 8 in channels:
          byte 4c + i of a unit holds channel c; low nibble = in channel i, high nibble = in channel 4 + i.
          Nibbles are code + 8 when symmetric (codes -8..7), and the code itself (0..15) when asymmetric.
    int8  codes (P, 8 * G * group_size) int8, in units of 32 bytes = 8 out x 4 in channels:
          byte 4c + i holds channel c, in channel i. Codes are -64..64.
    scales, zero_points   (P, G, 8) float16

The last panel and the last group are padded with values that stand for zero or meet no activation. int8 stops
at 64 because AVX2 multiplies unsigned by signed bytes and adds pairs into 16 bits; `layout.h` has the count, the
alternatives and their speed. Error on normal weights: int8 1.2 % (0.6 % up to 127), int4-g32 8.2 %, int4-g32-asym
7.3 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.errors import CheckpointError

PANEL = 8  # out channels of one panel
INT4_BIAS = 8  # what a symmetric int4 nibble is stored above its code
INT8_MAX = 64  # largest magnitude of an int8 code

Float32 = npt.NDArray[np.float32]
Float16 = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class QuantFormat:
    """How a weight is stored: bits of a code, in channels that share a scale, and whether zero is a code."""

    bits: int  # 4 or 8
    group_size: int  # 32 or 64 for int4, 64 for int8
    symmetric: bool  # without zero points

    def __post_init__(self) -> None:
        if (self.bits, self.group_size, self.symmetric) not in _SUPPORTED:
            raise ValueError(
                f"unsupported format: {self.bits} bits, group_size {self.group_size}, symmetric {self.symmetric}; "
                "supported: int4 with group_size 32 or 64, and int8 symmetric with group_size 64"
            )

    @property
    def name(self) -> str:
        """A short name such as int4-g32 or int4-g64-asym."""
        return f"int{self.bits}-g{self.group_size}" + ("" if self.symmetric else "-asym")

    def __str__(self) -> str:
        return self.name

    @property
    def codes_dtype(self) -> npt.DTypeLike:
        """Type of the stored code bytes."""
        return np.uint8 if self.bits == 4 else np.int8

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per weight with scales and zero points, without padding."""
        return self.bits + 16 / self.group_size * (1 if self.symmetric else 2)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form for a JSON config."""
        return {"bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantFormat:
        """Return the format that `to_dict` described.

        Raises:
            CheckpointError: a key is missing or unknown, or a value is not supported.
        """
        expected = {"bits", "group_size", "symmetric"}
        if set(data) != expected:
            raise CheckpointError(
                f"quantization format has keys {sorted(data)}, expected {sorted(expected)}; "
                "it may come from a newer version of tianquan"
            )
        bits, group_size, symmetric = data["bits"], data["group_size"], data["symmetric"]
        if type(bits) is not int or type(group_size) is not int or type(symmetric) is not bool:
            raise CheckpointError(f"quantization format {dict(data)} needs two integers and a boolean")
        try:
            return cls(bits=bits, group_size=group_size, symmetric=symmetric)
        except ValueError as error:
            raise CheckpointError(f"{error}; the folder may come from a newer version of tianquan") from None

    def array_shapes(self, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
        """Return name -> (shape, dtype) of the buffers that store a weight of `shape` (O, I)."""
        num_panels = -(-shape[0] // PANEL)
        num_groups = -(-shape[1] // self.group_size)
        codes = (num_panels, num_groups * self.group_size * self.bits)
        scales = (num_panels, num_groups, PANEL)
        arrays: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
            "codes": (codes, self.codes_dtype),
            "scales": (scales, np.float16),
        }
        if not self.symmetric:
            arrays["zero_points"] = (scales, np.float16)
        return arrays


_SUPPORTED = {(4, 32, True), (4, 64, True), (4, 32, False), (4, 64, False), (8, 64, True)}

INT4_G32 = QuantFormat(bits=4, group_size=32, symmetric=True)
INT4_G64 = QuantFormat(bits=4, group_size=64, symmetric=True)
INT4_G32_ASYM = QuantFormat(bits=4, group_size=32, symmetric=False)
INT4_G64_ASYM = QuantFormat(bits=4, group_size=64, symmetric=False)
INT8_G64 = QuantFormat(bits=8, group_size=64, symmetric=True)
FORMATS = {f.name: f for f in (INT4_G32, INT4_G64, INT4_G32_ASYM, INT4_G64_ASYM, INT8_G64)}


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight (O, I) in a low-bit format. The buffers may be read-only mappings of a file."""

    format: QuantFormat
    shape: tuple[int, int]
    codes: npt.NDArray[Any]
    scales: Float16  # (P, G, 8)
    zero_points: Float16 | None = None  # (P, G, 8)

    def __post_init__(self) -> None:
        for name, (shape, dtype) in self.format.array_shapes(self.shape).items():
            array = getattr(self, name)
            assert array is not None, name
            assert array.shape == shape, (name, array.shape, shape)
            assert array.dtype == dtype, (name, array.dtype, dtype)
        assert not (self.format.symmetric and self.zero_points is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return sum(array.nbytes for array in self.to_arrays().values())

    def dequantize(self) -> Float32:
        """Return the weight in float32 (O, I): the definition of what the bytes mean."""
        codes = unpack(self.codes, self.format)  # (P, 8, G, group_size)
        scales = self.scales.astype(np.float32).transpose(0, 2, 1)[..., None]  # (P, 8, G, 1)
        values = codes.astype(np.float32)
        if self.zero_points is not None:
            values -= self.zero_points.astype(np.float32).transpose(0, 2, 1)[..., None]
        values *= scales
        return values.reshape(len(codes) * PANEL, -1)[: self.shape[0], : self.shape[1]]

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Return out channels start:stop without copying.

        Raises:
            ValueError: the range leaves the tensor or does not begin and end between panels of 8.
        """
        num_rows, num_columns = self.shape
        if not 0 <= start < stop <= num_rows or start % PANEL or (stop % PANEL and stop != num_rows):
            raise ValueError(f"rows {start}:{stop} of {num_rows} must begin and end at multiples of {PANEL}")
        panels = slice(start // PANEL, -(-stop // PANEL))
        zero_points = None if self.zero_points is None else self.zero_points[panels]
        return QuantizedTensor(
            self.format, (stop - start, num_columns), self.codes[panels], self.scales[panels], zero_points
        )

    @staticmethod
    def concatenate(tensors: Sequence[QuantizedTensor]) -> QuantizedTensor:
        """Stack tensors of one format along the out channels.

        Raises:
            ValueError: formats or in channels differ, or a tensor before the last ends inside a panel.
        """
        first = tensors[0]
        if any((t.format, t.shape[1]) != (first.format, first.shape[1]) for t in tensors):
            raise ValueError("tensors to concatenate differ in format or in channels")
        if any(t.shape[0] % PANEL for t in tensors[:-1]):
            raise ValueError(f"out channels of all but the last tensor must be multiples of {PANEL}")
        parts = [t.to_arrays() for t in tensors]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return QuantizedTensor(first.format, (sum(t.shape[0] for t in tensors), first.shape[1]), **arrays)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the buffers by name, ready to be saved."""
        arrays: dict[str, npt.NDArray[Any]] = {"codes": self.codes, "scales": self.scales}
        if self.zero_points is not None:
            arrays["zero_points"] = self.zero_points
        return arrays

    @classmethod
    def from_arrays(
        cls, format: QuantFormat, shape: tuple[int, int], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> QuantizedTensor:
        """Return the tensor that `to_arrays` took apart, without copying.

        Raises:
            CheckpointError: a buffer is missing, unexpected, or of the wrong size or type.
        """
        expected = format.array_shapes(shape)
        if set(arrays) != set(expected):
            raise CheckpointError(
                f"a {format} weight has buffers {sorted(arrays)}, expected {sorted(expected)}; "
                "the folder is damaged or from a newer version of tianquan"
            )
        for name, (array_shape, dtype) in expected.items():
            array = arrays[name]
            if array.shape != array_shape or array.dtype != dtype:
                raise CheckpointError(
                    f"{name} of a {format} weight {shape} is {array.dtype}{array.shape}, expected "
                    f"{np.dtype(dtype)}{array_shape}; the folder is damaged, save it again"
                )
        return cls(format, shape, **arrays)


def pack(codes: npt.NDArray[np.int8], format: QuantFormat) -> npt.NDArray[Any]:
    """Lay codes (P, 8, G, group_size) out in the stored order; symmetric codes are centred on zero."""
    num_panels = len(codes)
    flat = codes.reshape(num_panels, PANEL, -1)  # (P, 8, padded I)
    if format.bits == 8:
        units = flat.reshape(num_panels, PANEL, -1, 4).transpose(0, 2, 1, 3)  # (P, unit, channel, in)
        return np.ascontiguousarray(units).reshape(num_panels, -1)
    nibbles = (flat + INT4_BIAS if format.symmetric else flat).astype(np.uint8)
    halves = nibbles.reshape(num_panels, PANEL, -1, 2, 4).transpose(0, 2, 3, 1, 4)  # (P, unit, half, 8, 4)
    return np.ascontiguousarray(halves[:, :, 0] | halves[:, :, 1] << 4).reshape(num_panels, -1)


def unpack(packed: npt.NDArray[Any], format: QuantFormat) -> npt.NDArray[np.int8]:
    """Return the codes (P, 8, G, group_size) that `pack` laid out."""
    num_panels = len(packed)
    if format.bits == 8:
        flat = packed.reshape(num_panels, -1, PANEL, 4).transpose(0, 2, 1, 3)
    else:
        units = packed.reshape(num_panels, -1, PANEL, 4)
        halves = np.stack([units & 15, units >> 4], axis=2)  # (P, unit, half, channel, in)
        flat = halves.transpose(0, 3, 1, 2, 4).astype(np.int8)
        if format.symmetric:
            flat -= INT4_BIAS
    return flat.reshape(num_panels, PANEL, -1, format.group_size)
