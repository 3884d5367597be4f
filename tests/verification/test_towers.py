from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shards import rewrite_shard
from tianquan.backends import make_ops
from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.errors import CheckpointError
from tianquan.quantization.recipes import find_recipe
from tianquan.verification import towers
from tianquan.verification.built_in_media import conversations, picture, tone
from tianquan.verification.short_answers import ShortAnswer, answer, compare_answers


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder):
    return open_checkpoint(checkpoint_folder)


@pytest.fixture(scope="module")
def prompt(checkpoint):
    return checkpoint.processor(conversations()["everything"])


@pytest.fixture(scope="module")
def config(checkpoint):
    return towers.first_layers(checkpoint.config, 1)


@pytest.fixture(scope="module")
def reference(checkpoint, config, prompt):
    ops = make_ops("reference")
    return towers.run_towers(checkpoint, config, find_recipe("float32"), ops, prompt, None)


def test_first_layers(checkpoint, config):
    assert (config.language.num_layers, config.vision.num_layers, config.audio.num_layers) == (1, 1, 1)
    assert towers.first_layers(checkpoint.config, 99) == checkpoint.config
    assert len(needed_weights(config)) < len(needed_weights(checkpoint.config))


def test_all_layers_are_the_model(checkpoint, prompt, reference_llm):
    whole = towers.run_towers(
        checkpoint, checkpoint.config, find_recipe("float32"), make_ops("reference"), prompt, None
    )
    trace = reference_llm.trace(conversations()["everything"])
    np.testing.assert_array_equal(whole.resampler, trace.image_features)
    np.testing.assert_array_equal(whole.audio, np.concatenate(trace.audio_features))
    np.testing.assert_array_equal(whole.language_model, trace.logits)


def test_native_is_the_reference_and_int4_is_further(checkpoint, config, prompt, reference):
    errors = {}
    for name in ("float32", "int4"):
        recipe = find_recipe(name)
        ops = make_ops("native", kv_format=recipe.kv_format)
        outputs = towers.run_towers(checkpoint, config, recipe, ops, prompt, reference)
        errors[name] = outputs.errors(reference)
        for tower, error in errors[name].items():
            assert error < towers.output_limit(needed_weights(config), tower, recipe), (name, tower)
    for tower in towers.TOWERS:
        assert errors["int4"][tower] > 100 * errors["float32"][tower]


def test_a_wrong_layer_is_seen_in_its_tower_only(checkpoint, config, prompt, reference):
    wrong = replace(config, audio=replace(config.audio, layer_norm_eps=1.0))
    ops = make_ops("native")
    outputs = towers.run_towers(checkpoint, wrong, find_recipe("float32"), ops, prompt, reference)
    failed = {tower for tower, error in outputs.errors(reference).items() if error > 1e-4}
    assert failed == {"audio"}


def test_counts(checkpoint, prompt, reference):
    unknown = checkpoint.processor.tokenizer.special_token_id("<|unk|>")
    assert towers.check_counts(prompt, unknown, reference).status == "ok"
    fewer = replace(reference, audio=reference.audio[:-1])
    assert towers.check_counts(prompt, unknown, fewer).status == "FAILED"
    one_more = replace(prompt, token_ids=np.append(prompt.token_ids, np.int32(unknown)))
    assert towers.check_counts(one_more, unknown, reference).status == "FAILED"
    shifted = replace(prompt, token_ids=np.roll(prompt.token_ids, 1))
    assert towers.check_counts(shifted, unknown, reference).status == "FAILED"


def test_errors_of_weights(checkpoint):
    seen = []
    recipe = find_recipe("int4")
    outcomes = list(towers.check_weights(checkpoint, recipe, make_ops("native"), lambda *at: seen.append(at)))
    assert [outcome.status for outcome in outcomes] == ["ok"] * 4
    assert seen[-1] == (len(needed_weights(checkpoint.config)),) * 2
    exact = towers.check_weights(checkpoint, find_recipe("bfloat16"), make_ops("native"), lambda *_: None)
    assert all("relative error 0.00e+00" in outcome.detail for outcome in exact)


def test_one_matrix_that_a_recipe_destroys(checkpoint, monkeypatch):
    broken = "language_model.layers.2.attention.value"
    squares = towers._squares
    sizes = []

    def worse(got, expected):
        sizes.append(expected.shape)
        difference, size = squares(got, expected)
        return (size, size) if len(sizes) == names.index(broken) + 1 else (difference, size)

    names = [weight.name for weight in needed_weights(checkpoint.config) if weight.is_matrix]
    monkeypatch.setattr(towers, "_squares", worse)
    check = towers.check_weights(checkpoint, find_recipe("int8"), make_ops("native"), lambda *_: None)
    outcomes = {outcome.name: outcome for outcome in check}
    failed = [outcome for outcome in outcomes.values() if outcome.status == "FAILED"]
    assert [outcome.name for outcome in failed] == ["language model weights in int8"]
    assert broken in failed[0].detail


@pytest.mark.parametrize(("value", "expected"), [(0, "FAILED"), (0x7FC0, "NaN")])
def test_zero_and_damaged_weights(copied_folder, value, expected):
    def change(tensors):
        for name, (_, data) in tensors.items():
            if name.startswith("vision.vpm."):
                data[:] = value

    def change_other(tensors):
        change(tensors)

    rewrite_shard(copied_folder, change_other)
    checkpoint = open_checkpoint(copied_folder)
    check = towers.check_weights(checkpoint, find_recipe("int4"), make_ops("native"), lambda *_: None)
    if expected == "NaN":
        with pytest.raises(CheckpointError, match="NaN"):
            list(check)
    else:
        by_name = {outcome.name: outcome for outcome in check}
        assert by_name["vision weights in int4"].status == "FAILED"
        assert by_name["audio weights in int4"].status == "ok"


def test_short_answers(checkpoint, config):
    recipe = find_recipe("float32")
    reference, native = (
        answer(checkpoint, config, recipe, make_ops(backend, kv_format="float32"))
        for backend in ("reference", "native")
    )
    assert set(reference) == {"text", "image", "audio", "everything"}
    assert {outcome.status for outcome in compare_answers(native, reference)} == {"ok"}
    assert all(len(one.token_ids) == len(one.margins) == 8 for one in reference.values())


def test_a_different_token_counts_unless_both_are_equally_likely():
    expected = {"text": ShortAnswer((1, 2, 3), (0.5, 0.5, 1e-5))}
    statuses = [
        next(compare_answers({"text": ShortAnswer(ids, (0.5,) * 3)}, expected)).status
        for ids in ((1, 2, 3), (1, 9, 3), (1, 2, 9))
    ]
    assert statuses == ["ok", "FAILED", "ok"]


def test_media_are_what_they_say():
    pixels = picture(120, 80)
    assert (pixels.shape, pixels.dtype) == ((80, 120, 3), np.uint8)
    assert pixels[40, 60].tolist() == [220, 30, 30]
    samples, rate = tone(0.5)
    assert (len(samples), rate) == (8000, 16000)
    assert 0.25 < np.abs(samples).max() <= 0.3
    loudest = np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples)
    assert loudest == pytest.approx(440, abs=2)
