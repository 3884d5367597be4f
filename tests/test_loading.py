"""Adapters beside a model: each answers as if it were alone, and what they do not change is held once."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tianquan
from random_adapter import write_adapter
from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.engine.interface import EngineOptions
from tianquan.engine.memory import _WORKING_BYTES
from tianquan.errors import CheckpointError, ParameterError
from tianquan.quantization.adapted import AdaptedTensor
from tianquan.request import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LAYER = "language_model.layers.0"
ADAPTED = {
    "words": (f"{LAYER}.attention.query", f"{LAYER}.mlp.down", "language_model.head"),
    "eyes": ("resampler.attention.key", "resampler.output", f"{LAYER}.attention.output"),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, checkpoint_folder):
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(root / name, checkpoint_folder, names, seed=seed, size=0.6)[0]
        for seed, (name, names) in enumerate(ADAPTED.items())
    }


@pytest.fixture(scope="module", params=["float32", "int4"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def family(checkpoint_folder, adapters, precision):
    return tianquan.load(checkpoint_folder, precision=precision, threads=2, adapters=adapters)


def conversations(media_root):
    picture = {"text": "what is it?", "image": str(media_root / "tiny_100x60.png")}
    sound = {"text": "what is said?", "audio": str(media_root / "speech_1s_16k.wav")}
    return [[{"role": "user", "content": content}] for content in ("hello there", picture, sound)]


def test_each_answers_as_it_does_alone_and_all_at_once(family, checkpoint_folder, adapters, precision, media_root):
    asked = conversations(media_root)
    alone = {}
    for name in (None, *adapters):
        llm = tianquan.load(checkpoint_folder, precision=precision, threads=2, adapter=adapters.get(name))
        alone[name] = [llm.chat(messages, sampling=GREEDY).token_ids for messages in asked]
    for n in range(len(asked)):
        assert len({tuple(answers[n]) for answers in alone.values()}) == 3, "the adapters change nothing here"

    def ask(name, n):
        llm = family if name is None else family.adapted[name]
        return name, n, llm.chat(asked[n], sampling=GREEDY).token_ids

    with ThreadPoolExecutor(18) as pool:
        jobs = [pool.submit(ask, name, n) for _ in range(2) for n in range(len(asked)) for name in alone]
        for job in jobs:
            name, n, token_ids = job.result(120)
            assert token_ids == alone[name][n], (name, n)


def test_engines_take_turns_and_one_does_not_wait_for_another_to_end(family, monkeypatch):
    """Two engines never step at the same time, and steps of both alternate while both have work."""
    inside, order = threading.Lock(), []
    for name, llm in (("base", family), ("words", family.adapted["words"])):
        engine = llm.driver.engine

        def step(name=name, step=engine.step):
            assert inside.acquire(blocking=False), "two engines step at once"
            try:
                order.append(name)
                time.sleep(0.001)
                return step()
            finally:
                inside.release()

        monkeypatch.setattr(engine, "step", step)
    sampling = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    messages = [{"role": "user", "content": "go on and on"}]
    answers = [llm.stream_chat(messages, sampling=sampling) for llm in (family, family.adapted["words"])]
    for answer in answers:
        *_, last = answer
        assert last.completion is not None
        assert last.completion.usage.completion_tokens == 40
    both = order[order.index("words") : len(order) - order[::-1].index("words")]
    middle = both[: len(both) // 2]
    assert all(a != b for a, b in itertools.pairwise(middle)), middle


def test_what_an_adapter_leaves_alone_is_held_once(family):
    base, words, eyes = (llm.model for llm in (family, family.adapted["words"], family.adapted["eyes"]))

    def arrays(linear):
        return [id(weight.base if isinstance(weight, AdaptedTensor) else weight) for weight in linear.weights]

    def adapted(linear):
        return [isinstance(weight, AdaptedTensor) for weight in linear.weights]

    layers = [model.language_model._layers[0] for model in (base, words, eyes)]
    queries = [arrays(layer.query_key_value) for layer in layers]
    assert queries[0] == queries[1] == queries[2]
    assert arrays(layers[0].down) == arrays(layers[2].down) == arrays(layers[1].down)
    assert [adapted(layer.query_key_value) for layer in layers] == [[False] * 3, [True, False, False], [False] * 3]
    assert [adapted(layer.down) for layer in layers] == [[False], [True], [False]]
    assert arrays(base.language_model._embedding) == arrays(words.language_model._embedding)
    (vision, resampler), (own_vision, _), (_, own_resampler) = (m.load_vision() for m in (base, words, eyes))
    shared, own = vision._layers[0]._query_key_value, own_vision._layers[0]._query_key_value
    assert arrays(shared) == arrays(own)
    assert resampler is not own_resampler


def test_memory_is_shared_out_and_checked(checkpoint_folder, adapters):
    checkpoint = open_checkpoint(checkpoint_folder)
    recipe = checkpoint.recipe("float32")
    needed = needed_weights(checkpoint.config)
    weights = sum(weight.nbytes(recipe) for weight in needed)
    shapes = [weight.shape for weight in needed for names in ADAPTED.values() if weight.name in names]
    own = sum(4 * 2 * (in_features + 2 * out_features) for out_features, in_features in shapes)  # of rank 2
    cache, kv = 3 * 2**20, 6 * 2**20
    least = weights + own + cache + _WORKING_BYTES

    def load(max_memory, kv_cache_bytes=None):
        options = EngineOptions(kv_cache_bytes=kv_cache_bytes, encoder_cache_bytes=cache)
        return tianquan.load(
            checkpoint_folder, precision="float32", adapters=adapters, max_memory=max_memory, engine=options
        )

    llm = load(least + kv)
    for one in (llm, *llm.adapted.values()):
        assert 0.9 * kv / 3 < one.statistics().kv_cache_bytes <= kv / 3
        assert one.driver.engine.options.encoder_cache_bytes == cache // 3
    with pytest.raises(ParameterError, match="max_memory"):
        load(least - 1)
    with pytest.raises(ParameterError, match="max_memory leaves"):
        load(least + kv, kv + 1)


def test_what_cannot_be_loaded(checkpoint_folder, adapters, tmp_path):
    with pytest.raises(ParameterError, match="one of the two"):
        tianquan.load(checkpoint_folder, adapter=adapters["words"], adapters=adapters)
    with pytest.raises(CheckpointError):
        tianquan.load(checkpoint_folder, adapters={"none": tmp_path})


def test_adapters_of_a_low_bit_folder(checkpoint_folder, adapters, tmp_path):
    low = tmp_path / "low"
    tianquan.load(checkpoint_folder).save_low_bit(low)
    message = [{"role": "user", "content": "hello there"}]
    answers = [
        {name: one.chat(message, sampling=GREEDY).token_ids for name, one in llm.adapted.items()}
        for llm in (tianquan.load(folder, adapters=adapters) for folder in (low, checkpoint_folder))
    ]
    assert answers[0] == answers[1]


def test_a_low_bit_folder_is_not_saved_without_its_adapter(checkpoint_folder, adapters, tmp_path):
    llm = tianquan.load(checkpoint_folder, adapter=adapters["words"])
    for one in (llm, tianquan.load(checkpoint_folder, adapters=adapters).adapted["eyes"]):
        with pytest.raises(ParameterError, match="would be left out"):
            one.save_low_bit(tmp_path / "low")
    assert not (tmp_path / "low").exists()


def test_one_engine_that_breaks_leaves_the_others(family, monkeypatch):
    def explode(*_):
        raise RuntimeError("broken")

    broken = family.adapted["eyes"]
    monkeypatch.setattr(broken.driver.engine._scheduler, "schedule", explode)
    going = family.stream_chat(
        [{"role": "user", "content": "go on"}], sampling=SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    )
    with pytest.raises(tianquan.errors.ModelError):
        broken.chat([{"role": "user", "content": "hello"}], sampling=GREEDY)
    *_, last = going
    assert last.completion is not None
    assert last.completion.usage.completion_tokens == 60
    assert len(broken.chat([{"role": "user", "content": "hello"}], sampling=GREEDY).token_ids) == 12
    assert np.isfinite(broken.statistics().kv_cache_usage)


@pytest.mark.parametrize("threads", [0, 1.5, "2", True])
def test_threads_of_wrong_kinds_are_refused(checkpoint_folder, threads):
    with pytest.raises(ParameterError, match="threads must be a whole number"):
        tianquan.load(checkpoint_folder, threads=threads)
