"""Folders that are missing something, damaged, hostile or of another model: one clear error each."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open

import tianquan
from json_files import edit_json
from shards import rewrite_shard
from tianquan.benchmark.synthetic import OFFICIAL_CONFIG
from tianquan.checkpoint import find_folder, open_checkpoint
from tianquan.checkpoint.config_files import JsonFile, parse_config
from tianquan.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from tianquan.checkpoint.tensor_list import required_tensors
from tianquan.errors import CheckpointError


def test_the_official_layout_has_1231_tensors_and_4_billion_parameters():
    shapes = required_tensors(parse_config(JsonFile("config.json", OFFICIAL_CONFIG)))
    assert len(shapes) == 1231
    assert sum(np.prod(shape, dtype=np.int64) for shape in shapes.values()) == pytest.approx(4.009e9, rel=1e-3)


def test_a_missing_tensor(copied_folder):
    rewrite_shard(copied_folder, lambda t: t.pop("audio.audio.positional_embedding"))
    with pytest.raises(CheckpointError, match=r"positional_embedding.*missing"):
        open_checkpoint(copied_folder)


def test_an_unexpected_tensor(copied_folder):
    rewrite_shard(copied_folder, lambda t: t.update({"vision.extra": ("F32", np.zeros(3, np.float32))}))
    with pytest.raises(CheckpointError, match=r"vision\.extra.*unexpected"):
        open_checkpoint(copied_folder)


def test_recomputed_rotary_tables_are_ignored(copied_folder):
    name = "llm.model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite_shard(copied_folder, lambda t: t.update({name: ("F32", np.zeros(3, np.float32))}))
    open_checkpoint(copied_folder)


def test_a_wrong_shape(copied_folder):
    def change(tensors):
        dtype, data = tensors["vision.resampler.query"]
        tensors["vision.resampler.query"] = (dtype, data[:-1])

    rewrite_shard(copied_folder, change)
    with pytest.raises(CheckpointError, match=r"resampler\.query.*\[63, 256\].*\[64, 256\]"):
        open_checkpoint(copied_folder)


def test_a_tensor_of_integers(copied_folder):
    def change(tensors):
        _, data = tensors["vision.resampler.query"]
        tensors["vision.resampler.query"] = ("I32", data.astype(np.int32))

    rewrite_shard(copied_folder, change)
    with pytest.raises(CheckpointError, match="I32; expected"):
        open_checkpoint(copied_folder)


@pytest.mark.parametrize("num_bytes", [0, 5, 8, 1000, 2_000_000])
def test_a_truncated_shard(copied_folder, num_bytes):
    shard = copied_folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors.*(truncated|not a complete)"):
        open_checkpoint(copied_folder)


def test_a_missing_shard(copied_folder):
    (copied_folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002.*not found"):
        open_checkpoint(copied_folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "model.bin"])
def test_an_index_that_points_outside_the_folder(copied_folder, name):
    index = copied_folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=weight_map | {"llm.lm_head.weight": name})
    with pytest.raises(CheckpointError, match=r"expected a \.safetensors file of the folder"):
        open_checkpoint(copied_folder)


def test_an_index_that_disagrees_with_its_shards(copied_folder):
    index = copied_folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["llm.lm_head.weight"] = "model-00002-of-00002.safetensors"
    edit_json(index, weight_map=weight_map)
    with pytest.raises(CheckpointError, match="lm_head"):
        open_checkpoint(copied_folder)


def header_file(path, header: bytes, data: bytes = b"", size: int | None = None):
    path.write_bytes((len(header) if size is None else size).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"not json",
        b"[" * 100_000,
        b'{"a": 5}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
    ],
)
def test_damaged_headers(tmp_path, header):
    header_file(tmp_path / "x.safetensors", header, b"1234")
    with pytest.raises(CheckpointError):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_a_header_larger_than_the_file(tmp_path):
    header_file(tmp_path / "x.safetensors", b"{}", size=2**63)
    with pytest.raises(CheckpointError, match="not a complete"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_written_files_are_read_by_the_format_s_own_library(tmp_path):
    tensors = {"b": np.arange(5, dtype=np.int8), "a": np.ones((2, 3), np.float32), "c": np.zeros((0, 4), np.float16)}
    names = {"b": "I8", "a": "F32", "c": "F16"}
    write_safetensors(tmp_path / "x.safetensors", {n: (names[n], t) for n, t in tensors.items()})
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"num_attention_heads": 7}, "do not fit"),
        ({"vision_config": ...}, "vision_config"),
        ({"audio_config": {"avg_pool": False}}, "avg_pool"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"query_num": 32}, "image_feature_size"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"vocab_size": 900}, "token id"),
    ],
)
def test_configs_that_are_not_supported(copied_folder, change, message):
    edit_json(copied_folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(copied_folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", "\udc80"])
def test_files_missing_or_damaged(copied_folder, name, content):
    path = copied_folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(copied_folder)


def test_no_weights_at_all(copied_folder):
    for path in copied_folder.glob("model*"):
        path.unlink()
    (copied_folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="only safetensors"):
        open_checkpoint(copied_folder)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "nothing", "a/b/c", "~/x"])
def test_no_such_folder(name):
    with pytest.raises(CheckpointError, match="no such folder"):
        find_folder(name)


def test_a_file_in_place_of_a_folder(checkpoint_folder):
    with pytest.raises(CheckpointError, match="is a file"):
        find_folder(checkpoint_folder / "config.json")


def merge_shards(folder):
    tensors = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        file = SafetensorsFile(path)
        tensors |= {name: (stored.dtype, file.read(name).copy()) for name, stored in file.tensors.items()}
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    return tensors


@pytest.mark.parametrize(("dtype", "storage"), [("BF16", None), ("F32", np.float32)])
def test_single_file_and_other_dtypes_give_the_same_answers(copied_folder, reference_llm, dtype, storage):
    tensors = merge_shards(copied_folder)
    if storage is not None:
        widened = {n: (t.astype(np.uint32) << 16).view(np.float32) for n, (_, t) in tensors.items()}
        tensors = {name: (dtype, t.astype(storage)) for name, t in widened.items()}
    write_safetensors(copied_folder / "model.safetensors", tensors)
    llm = tianquan.load(copied_folder, precision="float32", backend="reference")
    messages = [{"role": "user", "content": "Hello"}]
    np.testing.assert_array_equal(llm.trace(messages).logits, reference_llm.trace(messages).logits)


def test_tied_embeddings(copied_folder):
    shutil.copytree(copied_folder, copied_folder.parent / "tied")
    folder = copied_folder.parent / "tied"
    tensors = merge_shards(folder)
    tensors.pop("llm.lm_head.weight")
    write_safetensors(folder / "model.safetensors", tensors)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    tied = tianquan.load(folder, precision="float32", backend="reference")
    untied_tensors = merge_shards(copied_folder)
    untied_tensors["llm.lm_head.weight"] = untied_tensors["llm.model.embed_tokens.weight"]
    write_safetensors(copied_folder / "model.safetensors", untied_tensors)
    untied = tianquan.load(copied_folder, precision="float32", backend="reference")
    messages = [{"role": "user", "content": "Hello"}]
    np.testing.assert_array_equal(tied.trace(messages).logits, untied.trace(messages).logits)
