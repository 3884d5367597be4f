"""Values and files made to break the reader: a CheckpointError of one line each, never a traceback or a hang."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

import tianquan
from json_files import edit_json
from shards import rewrite_shard
from tianquan.backends.kv_cache import SequenceBatch
from tianquan.backends.native import NativeOps
from tianquan.checkpoint import find_folder, open_checkpoint
from tianquan.checkpoint.config_files import JsonFile
from tianquan.checkpoint.safetensors_file import SafetensorsFile
from tianquan.errors import BackendError, CheckpointError
from tianquan.quantization.dense import DenseTensor

DIGITS = "9" * 5000  # more than Python turns into an integer


def tensor(begin, end, dtype="U8", shape=None):
    return {"dtype": dtype, "shape": [4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "entries",
    [
        {"a": tensor(0, 4), "b": tensor(2, 6)},  # overlap
        {"a": tensor(0, 4), "b": tensor(0, 4), "c": tensor(4, 8)},  # the same bytes twice
        {"a": tensor(0, 4), "b": tensor(5, 9)},  # gap
        {"a": tensor(4, 8)},  # shifted
        {"a": tensor(0, 4)},  # bytes left over
        {"a": tensor("0", "8", shape=[8])},
        {"a": tensor(0.0, 8.0, shape=[8])},
        {"a": tensor(0, 8, shape=["8"])},
        {"a": tensor(0, 8, shape=[8.0])},
        {"a": tensor(0, 8, shape=[True, 8])},
        {"a": tensor(0, 8, shape=[1] * 40 + [8])},
        {"a": tensor(0, 8, shape=[int("9" * 4000)] * 2)},
        {"a": tensor(0, 8, shape={"8": 8})},
        {"a": tensor(0, 8, dtype=["U8"])},
        {"a": tensor(0, 8, dtype={"U8": 1})},
        {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8, 8]}},
        {"a": ["dtype", "shape", "data_offsets"]},
        {"a": None},
        {},
    ],
)
def test_headers_the_format_forbids(tmp_path, entries):
    header = json.dumps(entries).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: ") as caught:
        SafetensorsFile(path)
    assert len(str(caught.value)) < 600


def test_integers_too_long_to_read(copied_folder, tmp_path):
    header = b'{"a": {"dtype": "U8", "shape": [%s], "data_offsets": [0, 1]}}' % DIGITS.encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1")
    with pytest.raises(CheckpointError, match="damaged"):
        SafetensorsFile(tmp_path / "x.safetensors")
    config = copied_folder / "config.json"
    config.write_text(f'{{"hidden_size": {DIGITS}}}')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_checkpoint(copied_folder)


def test_null_means_absent(copied_folder):
    expected = open_checkpoint(copied_folder).config
    nulls = dict.fromkeys(("head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings", "sliding_window"))
    edit_json(copied_folder / "config.json", **nulls, rope_parameters=None, quantization_config=None)
    preprocessor = dict.fromkeys(("slice_mode", "use_image_id", "audio_start", "norm_mean", "n_fft"))
    edit_json(copied_folder / "preprocessor_config.json", **preprocessor)
    assert open_checkpoint(copied_folder).config == expected
    assert JsonFile("x", {"num_key_value_heads": None}).integer("num_key_value_heads", default=8) == 8


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"num_hidden_layers": 1001}, "num_hidden_layers must be at most"),
        ("config.json", {"hidden_size": 10**12}, "hidden_size must be at most"),
        ("config.json", {"vocab_size": 10**300}, "vocab_size must be at most"),
        ("config.json", {"rope_theta": 10**400}, "rope_theta must be a positive number"),
        ("config.json", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ("config.json", {"sliding_window": 1024}, "sliding_window"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("preprocessor_config.json", {"scale_resolution": 10**6}, "scale_resolution must be at most"),
        ("preprocessor_config.json", {"max_slice_nums": 10**6}, "max_slice_nums must be at most"),
        ("preprocessor_config.json", {"norm_mean": [0.48, 0.45, 0.4]}, "norm_mean"),
        ("preprocessor_config.json", {"norm_std": 0.25}, "norm_std"),
        ("preprocessor_config.json", {"mean": [0.5]}, "mean"),
        ("preprocessor_config.json", {"std": "0.5"}, "std"),
        ("preprocessor_config.json", {"n_fft": 512}, "n_fft"),
        ("preprocessor_config.json", {"hop_length": 200}, "hop_length"),
        ("preprocessor_config.json", {"chunk_length": 20}, "chunk_length"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}, {"name": ["x"]}]}, "no chat_template"),
    ],
)
def test_settings_out_of_range_or_not_implemented(copied_folder, file, change, message):
    edit_json(copied_folder / file, **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(copied_folder)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_size", 13, "image_size 13 is less than a patch"),
        ("image_size", 10**6, "image_size must be at most"),
        ("num_attention_heads", 10**9, "num_attention_heads must be at most"),
    ],
)
def test_vision_sizes(copied_folder, key, value, message):
    path = copied_folder / "config.json"
    vision = json.loads(path.read_text())["vision_config"]
    edit_json(path, vision_config=vision | {key: value})
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(copied_folder)


def test_dropping_the_only_vision_layer(copied_folder):
    path = copied_folder / "config.json"
    vision = json.loads(path.read_text())["vision_config"]
    edit_json(path, vision_config=vision | {"num_hidden_layers": 1}, drop_vision_last_layer=True)
    with pytest.raises(CheckpointError, match="no layer is left"):
        open_checkpoint(copied_folder)


def test_a_chat_template_file(copied_folder):
    path = copied_folder / "chat_template.jinja"
    template = json.loads((copied_folder / "tokenizer_config.json").read_text())["chat_template"]
    messages = [{"role": "user", "content": "Hello"}]
    expected = tianquan.load(copied_folder, precision="float32", backend="reference").trace(messages).logits
    path.write_bytes(b"\xef\xbb\xbf" + template.encode())
    got = tianquan.load(copied_folder, precision="float32", backend="reference").trace(messages).logits
    np.testing.assert_array_equal(got, expected)
    path.write_bytes(b"\xff\xfe{{")
    with pytest.raises(CheckpointError, match="is not UTF-8"):
        open_checkpoint(copied_folder)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        open_checkpoint(copied_folder)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "quantization.json",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
    ],
)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_not_a_regular_file(copied_folder, name, make):
    (copied_folder / name).unlink(missing_ok=True)
    make(copied_folder / name)
    with pytest.raises(CheckpointError, match=f"{name}: is not a regular file"):
        open_checkpoint(copied_folder)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "generation_config.json", "quantization.json"]
)
def test_a_link_to_what_is_not_there(copied_folder, name):
    (copied_folder / name).unlink(missing_ok=True)
    (copied_folder / name).symlink_to("/nonexistent/file")
    with pytest.raises(CheckpointError, match=f"{name}: is a link to what is not there"):
        open_checkpoint(copied_folder)


def test_a_model_that_is_a_link_to_what_is_not_there(tmp_path):
    (tmp_path / "model").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="is a link to what is not there"):
        find_folder(tmp_path / "model")


def test_no_address_space_is_left(copied_folder, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(np, "memmap", full)
    with pytest.raises(CheckpointError, match=r"safetensors: cannot be mapped \(Cannot allocate memory\)"):
        open_checkpoint(copied_folder)


def test_names_too_long(copied_folder):
    with pytest.raises(CheckpointError, match="File name too long"):
        find_folder("x" * 300)
    index = copied_folder / "model.safetensors.index.json"
    edit_json(index, weight_map={"a": "x" * 300 + ".safetensors"})
    with pytest.raises(CheckpointError, match="File name too long"):
        open_checkpoint(copied_folder)
    edit_json(index, weight_map={"a": "two\nlines.safetensors"})
    with pytest.raises(CheckpointError, match="expected a") as caught:
        open_checkpoint(copied_folder)
    assert "\n" not in str(caught.value)


def test_a_failed_download_names_both_possibilities(monkeypatch):
    def refuse(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"if it is a folder.*if it is a hub id"):
        find_folder("models/mistyped")


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC1])
@pytest.mark.parametrize(
    "name", ["audio.audio.proj.weight", "audio.audio.proj.bias", "audio.audio.positional_embedding"]
)
def test_nan_and_infinity_are_refused_under_dense_formats(copied_folder, name, bits):
    def change(tensors):
        dtype, data = tensors[name]
        data = data.copy()
        data.reshape(-1)[-1] = bits
        tensors[name] = (dtype, data)

    rewrite_shard(copied_folder, change)
    llm = tianquan.load(copied_folder, precision="bfloat16")
    with pytest.raises(CheckpointError, match=rf"{name}.*NaN or infinity"):
        llm.model.load_audio()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65504.0])
@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_nan_and_infinity_in_other_stored_types(copied_folder, dtype, value):
    def change(tensors):
        shape = tensors["audio.audio.proj.bias"][1].shape
        data = np.zeros(shape, np.float16 if dtype == "F16" else np.float32)
        data[-1] = value
        tensors["audio.audio.proj.bias"] = (dtype, data)

    rewrite_shard(copied_folder, change)
    llm = tianquan.load(copied_folder, precision="bfloat16")
    if np.isfinite(value):
        llm.model.load_audio()
        return
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        llm.model.load_audio()


def test_a_value_beyond_bfloat16(copied_folder):
    def change(tensors):
        _, data = tensors["audio.audio.proj.weight"]
        tensors["audio.audio.proj.weight"] = ("F32", np.full(data.shape, np.finfo(np.float32).max))

    rewrite_shard(copied_folder, change)
    with pytest.raises(CheckpointError, match="beyond bfloat16"):
        tianquan.load(copied_folder, precision="bfloat16").model.load_audio()


def batch(offsets, cached, tables):
    return SequenceBatch(*(np.array(values, np.int32) for values in (offsets, cached, tables)))


@pytest.mark.parametrize(
    ("made", "layer", "message"),
    [
        (batch([0, 1], [0], [[4]]), 0, "outside the cache"),
        (batch([0, 1], [0], [[-1]]), 0, "outside the cache"),
        (batch([0, 1], [8], [[1]]), 0, "too short"),
        (batch([0, 1], [-1], [[1]]), 0, "cached tokens"),
        (batch([0, 2], [0], [[1]]), 0, "new tokens"),
        (batch([0, 3, 1], [0, 8], [[1], [2]]), 0, "in order"),
        (batch([0, 1], [0], [[1]]), 1, "layer 1"),
        (batch([0, 1], [0], [[1]]), -1, "layer -1"),
    ],
)
def test_indices_that_would_leave_the_cache(made, layer, message):
    ops = NativeOps(threads=1)
    cache = ops.make_kv_cache(1, 4, 2, 8, 16)
    q = np.zeros((1, 2, 16), np.float32)
    with pytest.raises(BackendError, match=message):
        ops.cached_attention(q, q, q, cache, layer, made)


@pytest.mark.parametrize("token_id", [-1, 4, 1 << 40])
def test_token_ids_outside_the_table(token_id):
    ops = NativeOps(threads=1)
    table = ops.make_embedding(DenseTensor(np.zeros((4, 8), np.float32), "float32"))
    with pytest.raises(BackendError, match="outside the table"):
        ops.embedding(np.array([token_id]), table)


@pytest.mark.parametrize(
    ("queries", "keys"), [([0, 5], [0, 4]), ([0, 4], [0, 5]), ([1, 4], [0, 4]), ([0, 4], [0, 2, 4])]
)
def test_attention_offsets_outside_their_rows(queries, keys):
    x = np.zeros((4, 2, 16), np.float32)
    offsets = (np.array(values, np.int32) for values in (queries, keys))
    with pytest.raises(BackendError, match="offsets"):
        NativeOps(threads=1).attention(x, x, x, *offsets, causal=False)
