"""Every storage format with every kind of input on every backend: no dtype ever clashes, and errors are bounded."""

from __future__ import annotations

import numpy as np
import pytest

import tianquan
from tianquan.errors import CheckpointError
from tolerances import SAME_WEIGHTS, STORAGE, relative_rmse

INPUTS = {
    "text": {"text": "Hello! 你好"},
    "image": {"text": "What?", "image": "tiny_100x60.png"},
    "audio": {"text": "What?", "audio": "speech_1s_16k.wav"},
    "image+audio": {"text": "What?", "image": "crop_448x448.png", "audio": "speech_1s_16k.wav"},
}


@pytest.fixture(scope="session")
def models(checkpoint_folder):
    """Models by (precision, backend), loaded once."""
    loaded = {}

    def find(precision, backend):
        key = precision, backend
        if key not in loaded:
            loaded[key] = tianquan.load(checkpoint_folder, precision=precision, backend=backend)
        return loaded[key]

    return find


def trace(llm, kind, media_root):
    return llm.trace([{"role": "user", "content": INPUTS[kind]}], media_root=media_root).to_arrays()


@pytest.fixture(scope="session")
def traces(models, media_root):
    """Arrays by (precision, backend, kind of input), computed once."""
    done = {}

    def find(precision, backend, kind):
        key = precision, backend, kind
        if key not in done:
            done[key] = trace(models(precision, backend), kind, media_root)
        return done[key]

    return find


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("precision", STORAGE)
def test_against_float32(traces, precision, backend, kind):
    got, expected = traces(precision, backend, kind), traces("float32", "reference", kind)
    assert set(got) == set(expected)
    for name, array in got.items():
        if name == "prompt_token_ids":
            continue
        assert array.dtype == np.float32
        tolerance = STORAGE[precision]["features" not in name]
        assert relative_rmse(array, expected[name]) < tolerance, name


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("precision", SAME_WEIGHTS)
def test_native_against_reference(traces, precision, kind):
    native, reference = (traces(precision, backend, kind)["logits"] for backend in ("native", "reference"))
    assert relative_rmse(native, reference) < SAME_WEIGHTS[precision]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "int8", "int4", "int4-asym", "int4-small"])
def test_a_saved_folder_gives_the_same_bits(models, traces, checkpoint_folder, media_root, tmp_path, precision):
    llm = models(precision, "native")
    llm.save_low_bit(tmp_path / "saved")
    saved = tianquan.load(tmp_path / "saved")
    assert saved.recipe == llm.recipe
    for kind in INPUTS:
        got, expected = trace(saved, kind, media_root), traces(precision, "native", kind)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)
    on_reference = tianquan.load(tmp_path / "saved", backend="reference")
    got, expected = trace(on_reference, "text", media_root), traces(precision, "reference", "text")
    np.testing.assert_array_equal(got["logits"], expected["logits"])
    with pytest.raises(CheckpointError, match="load the original"):
        tianquan.load(tmp_path / "saved", precision="int8" if precision != "int8" else "int4")
    with pytest.raises(CheckpointError, match="low-bit folder already"):
        saved.save_low_bit(tmp_path / "again")


@pytest.mark.parametrize(("alias", "name"), [("sym_int4", "int4"), ("asym_int4", "int4-asym"), ("sym_int8", "int8")])
def test_names_of_bigdl(models, alias, name):
    assert models(alias, "native").recipe.name == name
