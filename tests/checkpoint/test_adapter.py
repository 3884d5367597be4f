"""Reading adapters: the sum is right, and what does not fit is refused. No torch is needed."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

import command_line
import tianquan
from random_adapter import write_adapter
from tianquan.checkpoint import find_folder, open_checkpoint
from tianquan.checkpoint.adapter import Adapter
from tianquan.checkpoint.names import module_path
from tianquan.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from tianquan.errors import CheckpointError
from tianquan.quantization.dense import DenseTensor

NAMES = ("language_model.layers.0.attention.query", "resampler.attention.key", "resampler.output", "audio.conv1")


@pytest.fixture
def config(checkpoint_folder):
    return open_checkpoint(checkpoint_folder).config


@pytest.fixture
def write(tmp_path, checkpoint_folder):
    def write(settings=None, tensors=None, names=NAMES, size=0.1):
        return write_adapter(
            tmp_path / "adapter", checkpoint_folder, names, size=size, settings=settings, tensors=tensors
        )

    return write


@pytest.mark.parametrize(("rslora", "scale"), [(False, 1.5), (True, 3 / 2**0.5)])
def test_the_sum(write, config, rslora, scale):
    folder, made = write({"use_rslora": rslora})
    adapter = Adapter.open(folder, config)
    for name in NAMES:
        prefix = f"base_model.model.{module_path(name)}"
        a, b = (made[f"{prefix}.lora_{half}.weight"] for half in "AB")
        base = DenseTensor(np.ones((len(b), a.shape[1]), np.float32), "float32")
        adapted = adapter.added_to(name, base)
        assert adapted.base is base
        np.testing.assert_allclose(adapted.to_float32(), 1 + scale * b @ a, rtol=1e-4, atol=1e-6)
    assert adapter.added_to("language_model.head", base) is base


def test_merged_equals_attached(write, checkpoint_folder, tmp_path):
    folder, _ = write()
    merged = tmp_path / "merged"
    result = command_line.run("merge", checkpoint_folder, folder, merged, "--format", "float32")
    assert result.returncode == 0, result
    messages = [{"role": "user", "content": "hello"}]
    one, two, base = (
        tianquan.load(model, precision="float32", adapter=adapter).trace(messages).logits
        for model, adapter in ((merged, None), (checkpoint_folder, folder), (checkpoint_folder, None))
    )
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    assert not np.allclose(one, base, rtol=1e-2, atol=1e-2)


def test_merged_has_the_checkpoints_format(write, checkpoint_folder, tmp_path):
    folder, _ = write()
    merged = tmp_path / "merged"
    assert command_line.run("merge", checkpoint_folder, folder, merged).returncode == 0
    before, after = (open_checkpoint(path).files for path in (checkpoint_folder, merged))
    assert {tensor.dtype for tensor in after.tensors.values()} == {tensor.dtype for tensor in before.tensors.values()}


def test_only_the_adapted_tensors_change(write, checkpoint_folder, tmp_path):
    folder, _ = write()
    merged = tmp_path / "merged"
    assert command_line.run("merge", checkpoint_folder, folder, merged, "--format", "float32").returncode == 0
    before, after = (open_checkpoint(path).files for path in (checkpoint_folder, merged))
    assert set(before.tensors) == set(after.tensors)
    changed = {
        name
        for name in before.tensors
        if not np.array_equal(before.dense(name).to_float32(), after.dense(name).to_float32())
    }
    assert changed == {
        "llm.model.layers.0.self_attn.q_proj.weight",
        "vision.resampler.attn.in_proj_weight",
        "vision.resampler.proj",
        "audio.audio.conv1.weight",
    }


def test_weights_that_are_both_embedding_and_head_are_written_once(checkpoint_folder, tmp_path, monkeypatch):
    from tianquan.backends.reference import ReferenceOps
    from tianquan.checkpoint import dense_folder
    from tianquan.checkpoint.tensor_list import needed_weights
    from tianquan.quantization.recipes import find_recipe

    checkpoint = open_checkpoint(checkpoint_folder)
    language = replace(checkpoint.config.language, tie_word_embeddings=True)
    config = replace(checkpoint.config, language=language)
    names = [weight.name for weight in needed_weights(config)]
    assert len(set(names)) == len(names) == len(needed_weights(checkpoint.config)) - 1
    monkeypatch.setattr(dense_folder, "MAX_SHARD_BYTES", 200_000)
    reader = dense_folder.ReadWeights(checkpoint.weights(find_recipe("float32"), ReferenceOps()))
    dense_folder.save_dense(checkpoint.folder, config, reader, "float32", tmp_path / "tied")
    files = sorted((tmp_path / "tied").glob("model-*"))
    assert len(files) > 1
    stored = [name for file in files for name in SafetensorsFile(file).tensors]
    assert len(set(stored)) == len(stored)


def test_other_tensors_formats_do_not_decide(tmp_path):
    """A table of rotary frequencies is ignored, in whatever format it is stored."""
    from tianquan.checkpoint.dense_folder import source_format

    folder = tmp_path / "model"
    shutil.copytree(find_folder("embedded", None), folder)
    expected = source_format(open_checkpoint(folder).files)
    assert expected == "float16"
    path = folder / "model.safetensors"
    stored = SafetensorsFile(path)
    tensors = {name: (entry.dtype, np.array(stored.read(name))) for name, entry in stored.tensors.items()}
    name = "llm.model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors[name] = ("F32", np.ones(4, np.float32))
    write_safetensors(path, tensors)
    assert source_format(open_checkpoint(folder).files) == expected


def test_files_of_other_loaders_are_copied(write, checkpoint_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(checkpoint_folder, base)
    for name in ("modeling_x.py", "special_tokens_map.json"):
        (base / name).write_text("{}")
    folder, _ = write()
    result = command_line.run("merge", base, folder, tmp_path / "merged")
    assert result.returncode == 0, result
    assert {"modeling_x.py", "special_tokens_map.json"} <= {path.name for path in (tmp_path / "merged").iterdir()}


def test_shards_have_an_index(write, checkpoint_folder, tmp_path, monkeypatch):
    from tianquan.backends.reference import ReferenceOps
    from tianquan.checkpoint import dense_folder
    from tianquan.quantization.recipes import find_recipe

    monkeypatch.setattr(dense_folder, "MAX_SHARD_BYTES", 2_000_000)
    checkpoint = open_checkpoint(checkpoint_folder)
    reader = dense_folder.ReadWeights(checkpoint.weights(find_recipe("float32"), ReferenceOps()))
    output = tmp_path / "sharded"
    dense_folder.save_dense(checkpoint.folder, checkpoint.config, reader, "float32", output)
    assert len(list(output.glob("model-*.safetensors"))) > 1
    messages = [{"role": "user", "content": "hello"}]
    one, two = (tianquan.load(path, precision="float32").trace(messages).logits for path in (checkpoint_folder, output))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("settings", "tensors", "words"),
    [
        ({"peft_type": "IA3"}, {}, "peft_type"),
        ({"use_dora": True}, {}, "use_dora"),
        ({"bias": "all"}, {}, "bias"),
        ({"modules_to_save": ["x"]}, {}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_16"}, {}, "init_lora_weights 'pissa_niter_16' changed the weights"),
        ({"init_lora_weights": "olora"}, {}, "plain LoRA"),
        ({"alora_invocation_tokens": [5]}, {}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, {}, "layer_replication"),
        ({"r": 0}, {}, "positive"),
        ({"r": 3}, {}, "shape"),
        ({}, {"base_model.model.llm.model.other.lora_A.weight": np.ones((2, 2), np.float32)}, "no place for"),
        ({}, {"base_model.model.vision.resampler.proj.lora_B.weight": None}, "shape"),
        ({}, {"base_model.model.llm.model.embed_tokens.lora_A.weight": np.ones((2, 2), np.float32)}, "embed_tokens"),
        ({}, {"base_model.model.vision.resampler.proj.lora_B.weight": np.full((64, 2), np.nan, np.float32)}, "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(write, config, settings, tensors, words):
    size = config.resampler.hidden_size
    tensors = {k: np.resize(v, (size, 2)) if v is not None and np.isnan(v).any() else v for k, v in tensors.items()}
    folder, _ = write(settings, tensors)
    with pytest.raises(CheckpointError, match=words):
        Adapter.open(folder, config)


def test_missing_files(tmp_path, config, write):
    with pytest.raises(CheckpointError, match=r"none: is no adapter; expected adapter_config\.json"):
        Adapter.open(tmp_path / "none", config)
    folder, _ = write()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        Adapter.open(folder, config)


def test_beside_low_bits_it_is_what_was_trained(tmp_path):
    """Added to weights of four bits and rounded with them, much of a small change is lost."""
    model = find_folder("embedded", None)
    names = [f"language_model.layers.{n}.mlp.{part}" for n in range(3) for part in ("gate", "up", "down")]
    folder, _ = write_adapter(tmp_path / "adapter", model, names)
    low, merged = tmp_path / "low", tmp_path / "merged"
    assert command_line.run("quantize", model, low).returncode == 0
    assert command_line.run("merge", model, folder, merged).returncode == 0

    def logits(model, adapter=None, precision=None):
        messages = [{"role": "user", "content": "what is your name?"}]
        return tianquan.load(model, precision=precision, adapter=adapter).trace(messages).logits

    beside = logits(low, folder)
    np.testing.assert_array_equal(beside, logits(model, folder, "int4"))
    wanted = logits(model, folder, "float32")
    change = np.linalg.norm(wanted - logits(model, None, "float32"))
    error, error_inside = (np.linalg.norm(found - wanted) / change for found in (beside, logits(merged)))
    assert error < 0.1, error
    assert error_inside > 3 * error, (error, error_inside)


def test_low_bit_folders_are_not_merged(write, checkpoint_folder, tmp_path):
    folder, _ = write()
    low = tmp_path / "low"
    assert command_line.run("quantize", checkpoint_folder, low).returncode == 0
    command_line.assert_refused(command_line.run("merge", low, folder, tmp_path / "merged"), "low-bit", "original")
