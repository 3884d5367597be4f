from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianquan.errors import CheckpointError
from tianquan.quantization.format import FORMATS, INT4_G32, INT8_G64, QuantFormat, QuantizedTensor, pack, unpack
from tianquan.quantization.quantizers import quantize


def random_codes(format: QuantFormat, panels: int, groups: int) -> np.ndarray:
    low, high = (-64, 64) if format.bits == 8 else (-8, 7) if format.symmetric else (0, 15)
    rng = np.random.default_rng(panels * 100 + groups)
    return rng.integers(low, high + 1, (panels, 8, groups, format.group_size)).astype(np.int8)


@given(st.sampled_from(list(FORMATS.values())), st.integers(1, 3), st.integers(1, 3))
def test_pack_and_unpack_are_exact(format: QuantFormat, panels: int, groups: int) -> None:
    codes = random_codes(format, panels, groups)
    packed = pack(codes, format)
    assert packed.shape == format.array_shapes((panels * 8, groups * format.group_size))["codes"][0]
    assert np.array_equal(unpack(packed, format), codes)


def test_the_bytes_are_those_that_layout_h_draws() -> None:
    codes = random_codes(INT4_G32, 2, 2)
    packed = pack(codes, INT4_G32)
    for panel, channel, i in ((0, 0, 0), (1, 3, 5), (0, 7, 31), (1, 6, 60)):
        byte = packed[panel, i // 8 * 32 + channel * 4 + i % 4]
        nibble = byte & 15 if i % 8 < 4 else byte >> 4
        assert nibble == codes[panel, channel].ravel()[i] + 8
    codes = random_codes(INT8_G64, 2, 2)
    packed = pack(codes, INT8_G64)
    for panel, channel, i in ((0, 0, 0), (1, 3, 5), (0, 7, 31), (1, 6, 127)):
        assert packed[panel, i // 4 * 32 + channel * 4 + i % 4] == codes[panel, channel].ravel()[i]


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_dequantize_is_scale_times_code_minus_zero_point(format: QuantFormat) -> None:
    rng = np.random.default_rng(0)
    codes = random_codes(format, 2, 2)
    scales = rng.standard_normal((2, 2, 8)).astype(np.float16)
    arrays = {"codes": pack(codes, format), "scales": scales}
    if not format.symmetric:
        arrays["zero_points"] = (rng.random((2, 2, 8)) * 15).astype(np.float16)
    shape = (11, format.group_size + 3)
    values = QuantizedTensor.from_arrays(format, shape, arrays).dequantize()
    assert values.shape == shape
    assert values.dtype == np.float32
    for row, column in ((0, 0), (10, 5), (7, shape[1] - 1)):
        at = (row // 8, column // format.group_size, row % 8)
        zero_point = np.float32(arrays["zero_points"][at]) if not format.symmetric else np.float32(0)
        code = np.float32(codes[at[0], at[2]].ravel()[column])
        assert values[row, column] == np.float32(scales[at]) * (code - zero_point)


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_rows_and_concatenate(format: QuantFormat) -> None:
    tensor = quantize(np.random.default_rng(0).standard_normal((20, 37)).astype(np.float32), format)
    parts = [tensor.rows(0, 8), tensor.rows(8, 20)]
    assert np.array_equal(parts[1].dequantize(), tensor.dequantize()[8:])
    assert np.shares_memory(parts[1].codes, tensor.codes)
    assert np.array_equal(QuantizedTensor.concatenate(parts).dequantize(), tensor.dequantize())
    for start, stop in ((4, 8), (0, 12), (8, 8), (0, 24)):
        with pytest.raises(ValueError, match="multiples of 8"):
            tensor.rows(start, stop)
    with pytest.raises(ValueError, match="multiples of 8"):
        QuantizedTensor.concatenate([parts[1], parts[0]])
    with pytest.raises(ValueError, match="differ"):
        QuantizedTensor.concatenate([tensor.rows(0, 8), quantize(np.ones((8, 40), np.float32), format)])


def test_formats_as_plain_data() -> None:
    for name, format in FORMATS.items():
        assert QuantFormat.from_dict(format.to_dict()) == format
        assert str(format) == name
    good = INT4_G32.to_dict()
    for change in ({"bits": 3}, {"group_size": 48}, {"bits": "4"}, {"symmetric": 1}, {"kind": "nf4"}):
        with pytest.raises(CheckpointError):
            QuantFormat.from_dict({**good, **change})
    with pytest.raises(CheckpointError, match="expected"):
        QuantFormat.from_dict({"bits": 4})


def test_damaged_buffers_are_refused() -> None:
    tensor = quantize(np.ones((8, 32), np.float32), INT4_G32)
    arrays = tensor.to_arrays()
    assert tensor.nbytes == sum(a.nbytes for a in arrays.values()) == 128 + 16
    for damaged in (
        {"codes": arrays["codes"]},
        {**arrays, "zero_points": arrays["scales"]},
        {**arrays, "codes": arrays["codes"][:, :-1]},
        {**arrays, "codes": arrays["codes"].view(np.int8)},
        {**arrays, "scales": arrays["scales"].astype(np.float32)},
    ):
        with pytest.raises(CheckpointError):
            QuantizedTensor.from_arrays(INT4_G32, (8, 32), damaged)
