from __future__ import annotations

import json

import numpy as np
import pytest

from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.safetensors_file import write_safetensors
from tianquan.errors import CheckpointError
from tianquan.quantization.dense import round_to_bfloat16
from tianquan.verification.trace_comparison import TraceFile, compare_trace, stored_recipe

_DTYPES = {"float32": "F32", "int32": "I32", "int64": "I64", "uint16": "BF16"}


@pytest.fixture(scope="module")
def trace(reference_llm, conformance, media_root):
    messages = json.loads((conformance / "cases" / "image_audio_text.json").read_text())["messages"]
    return reference_llm.trace(messages, media_root=media_root)


def compare(trace, tmp_path, change=None, is_dense=True, tolerance=None):
    arrays = {name: array.copy() for name, array in trace.to_arrays().items()}
    if change is not None:
        change(arrays)
    path = tmp_path / "trace.safetensors"
    write_safetensors(path, {name: (_DTYPES[array.dtype.name], array) for name, array in arrays.items()})
    outcomes = list(compare_trace(trace, TraceFile(path), is_dense, tolerance))
    return {outcome.name: outcome for outcome in outcomes}


def failed(outcomes):
    return {name.removeprefix("trace, ") for name, outcome in outcomes.items() if outcome.status == "FAILED"}


def test_a_trace_equals_itself(trace, tmp_path):
    outcomes = compare(
        trace, tmp_path, lambda a: a.update(prompt_token_ids=a["prompt_token_ids"].astype(np.int64)[None])
    )
    assert not failed(outcomes)
    assert len(outcomes) == 5
    assert "likeliest token equal at 100.0%" in outcomes["trace, logits"].detail


def test_what_differs_is_named(trace, tmp_path):
    def change(arrays):
        arrays["image_features"][2] += 0.5
        arrays["logits"] = arrays["logits"][-8:]

    outcomes = compare(trace, tmp_path, change)
    assert failed(outcomes) == {"image_features", "logits"}
    assert "worst at row 2" in outcomes["trace, image_features"].detail
    assert "shape" in outcomes["trace, logits"].detail


def test_token_ids_show_where_they_part(trace, tmp_path):
    def change(arrays):
        arrays["prompt_token_ids"][5] += 1

    outcome = compare(trace, tmp_path, change)["trace, prompt_token_ids"]
    assert outcome.status == "FAILED"
    assert "part at number 5" in outcome.detail

    def shorten(arrays):
        arrays["prompt_token_ids"] = arrays["prompt_token_ids"][:-2]

    shorter = compare(trace, tmp_path, shorten)["trace, prompt_token_ids"]
    assert f"the trace has {len(trace.prompt_token_ids) - 2}" in shorter.detail


def test_missing_and_unknown_tensors(trace, tmp_path):
    def change(arrays):
        del arrays["audio_features.0"]
        arrays["audio_features.1"] = arrays["logits"][:3]

    outcomes = compare(trace, tmp_path, change)
    assert failed(outcomes) == {"trace"}
    assert "lacks audio_features.0" in outcomes["trace"].detail
    assert "audio_features.1, which" in outcomes["trace"].detail


def test_tolerance_goes_by_what_the_trace_is_stored_in(trace, tmp_path):
    rng = np.random.default_rng(0)

    def noisy(arrays):
        logits = arrays["logits"]
        arrays["logits"] = logits + np.float32(0.02 * logits.std()) * rng.standard_normal(logits.shape, np.float32)

    def stored_in_16_bits(arrays):
        noisy(arrays)
        arrays["logits"] = round_to_bfloat16(arrays["logits"])

    assert failed(compare(trace, tmp_path, noisy)) == {"logits"}
    assert not failed(compare(trace, tmp_path, stored_in_16_bits))
    assert not failed(compare(trace, tmp_path, noisy, is_dense=False))
    assert not failed(compare(trace, tmp_path, noisy, tolerance=0.05))


def test_values_that_are_no_numbers(trace, tmp_path):
    def change(arrays):
        arrays["logits"][0, 0] = np.nan
        arrays["image_features"] = arrays["image_features"].astype(np.int32)

    assert failed(compare(trace, tmp_path, change)) == {"logits", "image_features"}
    with pytest.raises(CheckpointError, match="none"):
        TraceFile(tmp_path / "none.safetensors")


def test_stored_recipe(checkpoint_folder):
    recipe = stored_recipe(open_checkpoint(checkpoint_folder))
    assert recipe.format_of("language_model.head") == "bfloat16"
    assert recipe.kv_format == "float32"
