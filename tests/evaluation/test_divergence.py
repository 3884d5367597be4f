from __future__ import annotations

import json

import numpy as np
import pytest

from tianquan.backends import make_ops
from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.errors import ModelError, ParameterError
from tianquan.evaluation.divergence import (
    Divergence,
    ReferenceLogits,
    answer_logits,
    by_modality,
    compare_logits,
)
from tianquan.evaluation.sensitivity import one_tower_recipe, towers_of
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import find_recipe
from tianquan.request import MediaPolicy
from tianquan.training.examples import build_example
from tianquan.training.records import parse_record
from tolerances import REGROUPED, relative_rmse

TALKS = [
    [("Hello", "good day")],
    [({"text": "What?", "image": "tiny_100x60.png"}, "red"), ("And?", "blue")],
    [({"audio": "speech_1s_16k.wav"}, "两个")],
]


@pytest.fixture(scope="module")
def examples(processor, media_root):
    built = []
    for number, talk in enumerate(TALKS):
        turns = [{"role": role, "content": text} for pair in talk for role, text in zip(("user", "assistant"), pair)]
        record = parse_record(json.dumps({"conversations": turns}), f"file:{number}")
        built.append(build_example(processor, record, MediaPolicy(), media_root, 4096))
    return built


def model(folder, recipe):
    checkpoint = open_checkpoint(folder)
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    ops = make_ops("native", kv_format=recipe.kv_format)
    return OmniModel(checkpoint.config, checkpoint.weights(recipe, ops), ops)


def test_logits_are_those_of_a_trace(llm, examples, media_root):
    messages = [{"role": "user", "content": TALKS[1][0][0]}, {"role": "assistant", "content": "red"}]
    example = examples[1]
    logits = answer_logits(llm.model, example)
    assert logits.shape == (example.loss_mask.sum(), llm.model.config.language.vocab_size)
    traced = llm.trace([*messages, {"role": "user", "content": "And?"}], media_root=media_root)
    first = int(example.loss_mask.argmax())
    num_first = int(example.loss_mask[first:].argmin())
    assert relative_rmse(logits[:num_first], traced.logits[first - 1 : first - 1 + num_first]) < REGROUPED


def test_a_model_is_at_no_distance_from_itself_and_int4_is_further_than_int8(checkpoint_folder, examples):
    totals = {}
    with ReferenceLogits() as reference:
        assert len(list(reference.record(model(checkpoint_folder, "float32"), examples))) == len(reference) == 3
        for name in ("float32", "int8", "int4"):
            found = list(reference.compare(model(checkpoint_folder, name), examples))
            assert [record.modality for record in found] == ["text", "image", "audio"]
            totals[name] = by_modality(found)
    same = totals["float32"]["all"].to_dict()
    assert same["kl"] == pytest.approx(0, abs=1e-9)
    assert (same["top1_agreement"], same["perplexity_ratio"]) == (1.0, pytest.approx(1.0))
    assert 0 < totals["int8"]["all"].kl < totals["int4"]["all"].kl
    assert list(totals["int4"]) == ["all", "text", "image", "audio"]
    assert sum(total.num_tokens for name, total in totals["int4"].items() if name != "all") == same["tokens"]


def test_one_tower_moves_what_passes_through_it(checkpoint_folder, examples):
    weights = needed_weights(open_checkpoint(checkpoint_folder).config)
    float32, int4 = find_recipe("float32"), find_recipe("int4")
    mixed = {tower: one_tower_recipe(weights, tower, int4, float32) for tower in towers_of(("image", "audio"))}
    for tower, recipe in mixed.items():
        for weight in weights:
            expected = int4 if weight.component == tower else float32
            assert weight.format(recipe) == weight.format(expected), (tower, weight.name)
    assert mixed["vision"].kv_format == float32.kv_format
    assert mixed["language_model"].kv_format == int4.kv_format
    with ReferenceLogits() as reference:
        list(reference.record(model(checkpoint_folder, "float32"), examples))
        found = by_modality(list(reference.compare(model(checkpoint_folder, mixed["audio"]), examples)))
    assert found["text"].kl == pytest.approx(0, abs=1e-9)
    assert found["image"].kl == pytest.approx(0, abs=1e-9)
    assert found["audio"].kl > 1e-6
    assert towers_of(()) == ("language_model",)


def test_values_by_hand():
    reference = np.log(np.array([[0.5, 0.25, 0.25]], np.float32)) + 7  # any constant falls away
    other = np.log(np.array([[0.25, 0.5, 0.25]], np.float32))
    found = compare_logits(reference, other, np.array([0], np.int32)).to_dict()
    assert found["kl"] == pytest.approx(0.5 * np.log(2) - 0.25 * np.log(2))
    assert found["top1_agreement"] == 0.0
    assert found["perplexity"] == pytest.approx(4)
    assert found["perplexity_ratio"] == pytest.approx(2)
    many = compare_logits(np.repeat(reference, 50, 0), np.repeat(other, 50, 0), np.zeros(50, np.int32))
    assert many.to_dict()["kl"] == pytest.approx(found["kl"])
    assert by_modality([]) == {}
    assert Divergence() + many == many


def test_a_model_that_has_diverged_has_no_perplexity():
    reference, other = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32)
    other[:, 0] = 5000.0
    found = compare_logits(reference, other, np.array([1, 2, 3], np.int32)).to_dict()
    assert found["perplexity"] is found["perplexity_ratio"] is None
    assert found["kl"] > 1000
    assert found["reference_perplexity"] == pytest.approx(4.0)


def test_another_tokenizer_is_refused(checkpoint_folder, random_folder, examples, media_root):
    with ReferenceLogits() as reference:
        list(reference.record(model(checkpoint_folder, "float32"), examples[:1]))
        other = open_checkpoint(random_folder)
        record = parse_record(
            json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]}), "f:1"
        )
        example = build_example(other.processor, record, MediaPolicy(), media_root, 4096)
        with pytest.raises(ParameterError, match=r"f:1: .*same tokenizer"):
            list(reference.compare(model(random_folder, "float32"), [example]))
        with pytest.raises(ParameterError, match="same vocabulary"):
            list(reference.compare(_WithOtherVocabulary(model(checkpoint_folder, "float32")), examples[:1]))


class _Wrapped:
    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


class _WithOtherVocabulary(_Wrapped):
    def forward(self, *arguments, **options):
        return self._inner.forward(*arguments, **options)[:, :-1]


class _Broken(_Wrapped):
    def forward(self, *arguments, **options):
        return self._inner.forward(*arguments, **options) * np.float32(np.nan)


def test_a_broken_model_is_an_error(checkpoint_folder, examples):
    with pytest.raises(ModelError, match="file:0"):
        answer_logits(_Broken(model(checkpoint_folder, "float32")), examples[0])
