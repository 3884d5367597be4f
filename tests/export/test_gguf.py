from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from command_line import assert_refused, run
from tianquan.checkpoint import open_checkpoint
from tianquan.errors import CheckpointError
from tianquan.export import gguf_file
from tianquan.export.gguf_file import interleaved, save_gguf

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PLAIN = {"id": 0, "content": "!", "special": False, "normalized": False} | dict.fromkeys(
    ("single_word", "lstrip", "rstrip"), False
)
# Largest error of a value, as a share of the largest in its block of 32: half a step, and the scale's rounding.
STEP = {"f16": 2**-11, "q8_0": 0.5 / 127 + 2**-10, "q4_0": 1 / 8 + 2**-10}


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder):
    return open_checkpoint(checkpoint_folder)


@pytest.fixture(scope="module", params=["f16", "q8_0", "q4_0"])
def exported(request, checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    save_gguf(checkpoint, request.param, path)
    return request.param, gguf.GGUFReader(path)


def test_every_weight_is_there(exported, reference_llm):
    kind, reader = exported
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    files = reference_llm.checkpoint.files
    config = reference_llm.model.config.language
    stored = [name for name in files.tensors if name.startswith("llm.")]
    assert len(tensors) == len(stored) == 3 + 9 * config.num_layers
    pairs = {
        "token_embd.weight": ("llm.model.embed_tokens.weight", None),
        "output.weight": ("llm.lm_head.weight", None),
        "blk.1.attn_q.weight": ("llm.model.layers.1.self_attn.q_proj.weight", config.num_heads),
        "blk.2.attn_k.weight": ("llm.model.layers.2.self_attn.k_proj.weight", config.num_kv_heads),
        "blk.0.attn_v.weight": ("llm.model.layers.0.self_attn.v_proj.weight", None),
        "blk.0.ffn_down.weight": ("llm.model.layers.0.mlp.down_proj.weight", None),
        "blk.0.ffn_norm.weight": ("llm.model.layers.0.post_attention_layernorm.weight", None),
    }
    for name, (ours, num_heads) in pairs.items():
        expected = files.dense(ours).to_float32()
        if num_heads is not None:
            expected = interleaved(expected, num_heads)
        tensor = tensors[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
        if expected.ndim == 1:
            np.testing.assert_array_equal(values, expected)
            continue
        step = STEP["q8_0" if (kind, name) == ("q4_0", "output.weight") else kind]
        blocks = expected.reshape(-1, 32)
        error = np.abs(values.reshape(-1, 32) - blocks)
        assert (error <= step * np.abs(blocks).max(1, keepdims=True) + 1e-7).all(), name


def test_rows_that_rotate_together_are_neighbours():
    rows = np.arange(16, dtype=np.float32)[:, None]
    expected = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert interleaved(rows, 2)[:, 0].tolist() == expected


def test_sizes_tokens_and_template(exported, checkpoint):
    _, reader = exported
    value = {name: field.contents() for name, field in reader.fields.items()}
    config = checkpoint.config.language
    assert value["general.architecture"] == "llama"
    assert value["llama.attention.head_count_kv"] == config.num_kv_heads
    assert value["llama.rope.freq_base"] == pytest.approx(config.rope_theta)
    assert len(value["tokenizer.ggml.tokens"]) == config.vocab_size
    end = checkpoint.processor.tokenizer.special_token_id("<|turn_end|>")
    assert value["tokenizer.ggml.eos_token_id"] == end
    assert value["tokenizer.ggml.tokens"][end] == "<|turn_end|>"
    assert value["tokenizer.ggml.token_type"][end] == gguf.TokenType.CONTROL
    assert value["tokenizer.ggml.pre"] == "megrez"
    assert "add_generation_prompt" in value["tokenizer.chat_template"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.update(normalizer={"type": "NFKC"}), "has a normalizer"),
        (lambda file: file.update(pre_tokenizer={"type": "Whitespace"}), "no name for"),
        (lambda file: file.update(pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True}), "no name for"),
        (lambda file: file["pre_tokenizer"]["pretokenizers"][1].pop("use_regex"), "no name for"),  # then it is true
        (lambda file: file["model"].update(ignore_merges=True), "has ignore_merges true"),
        (lambda file: file["model"].update(end_of_word_suffix="</w>"), "has end_of_word_suffix"),
        (lambda file: file["added_tokens"].append(PLAIN | {"single_word": True}), "is found by single_word"),
        (lambda file: file["added_tokens"].append(PLAIN | {"lstrip": True}), "is found by single_word or lstrip"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_run_differently(copied_folder, tmp_path, change, words):
    path = copied_folder / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    change(definition)
    path.write_text(json.dumps(definition), encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        save_gguf(open_checkpoint(copied_folder), "q8_0", tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out*"))


def test_a_gpt2_split_has_a_name_too(random_folder, tmp_path):
    save_gguf(open_checkpoint(random_folder), "f16", tmp_path / "out.gguf")
    field = gguf.GGUFReader(tmp_path / "out.gguf").fields["tokenizer.ggml.pre"]
    assert field.contents() == "gpt-2"


def test_a_file_that_is_there_is_kept(checkpoint, tmp_path):
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        save_gguf(checkpoint, "f16", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == "mine"
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_gguf(checkpoint, "f16", tmp_path / "none" / "out.gguf")


def test_a_low_bit_folder_is_refused(checkpoint, tmp_path):
    from tianquan.backends import make_ops
    from tianquan.quantization.recipes import find_recipe

    checkpoint.save_low_bit(find_recipe("int4"), tmp_path / "low", make_ops("reference"))
    with pytest.raises(CheckpointError, match="low-bit folder"):
        save_gguf(open_checkpoint(tmp_path / "low"), "q8_0", tmp_path / "out.gguf")


def test_what_no_half_precision_holds_is_refused(checkpoint, tmp_path, monkeypatch):
    values = gguf_file._values

    def huge(reader, weight, config):
        found = np.array(values(reader, weight, config))
        if weight.name.endswith("down"):
            found.flat[3] = 1e5
        return found

    monkeypatch.setattr(gguf_file, "_values", huge)
    for type in ("f16", "q8_0"):
        with pytest.raises(CheckpointError, match="beyond 65504"):
            save_gguf(checkpoint, type, tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("type", "size", "is_lost"), [("q8_0", 1e-6, True), ("q4_0", 1e-7, True), ("q8_0", 1e-3, False)]
)
def test_matrices_that_half_precision_loses_are_refused(checkpoint, tmp_path, monkeypatch, type, size, is_lost):
    values = gguf_file._values

    def small(reader, weight, config):
        found = values(reader, weight, config)
        return found * np.float32(size / np.abs(found).max()) if weight.name.endswith("down") else found

    monkeypatch.setattr(gguf_file, "_values", small)
    refused = pytest.raises(CheckpointError, match=r"down: values of at most .* are lost")
    with refused if is_lost else contextlib.nullcontext():
        save_gguf(checkpoint, type, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ([] if is_lost else ["out.gguf"])


def test_what_a_killed_export_left_is_removed(checkpoint, tmp_path):
    left, written = (tmp_path / f".out.gguf.partial-{n:08x}" for n in (1, 2))
    for path in (left, written):
        path.write_bytes(b"half of it")
    with written.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        save_gguf(checkpoint, "f16", tmp_path / "out.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf", written.name}


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(checkpoint, tmp_path, monkeypatch, has_links):
    def make(done, total):
        (tmp_path / "out.gguf").write_text("theirs")

    def fails(*_):
        raise PermissionError

    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", fails)
        save_gguf(checkpoint, "f16", tmp_path / "other.gguf")
        (tmp_path / "other.gguf").unlink()
    with pytest.raises(CheckpointError, match="made by another process meanwhile"):
        save_gguf(checkpoint, "f16", tmp_path / "out.gguf", make)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("path", "name"),
    [("caf\udce9", "caf\ufffd"), ("models--owner--name/snapshots/0123abcd", "owner/name"), ("plain", "plain")],
)
def test_the_name_of_the_model(checkpoint_folder, tmp_path, path, name):
    folder = tmp_path / path
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(checkpoint_folder, folder)
    save_gguf(open_checkpoint(folder), "f16", tmp_path / "out.gguf")
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.name"].contents() == name


def test_an_error_on_the_way_leaves_nothing(checkpoint, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_gguf(checkpoint, "f16", tmp_path / "out.gguf", stop)
    assert list(tmp_path.iterdir()) == []


def test_command(checkpoint_folder, tmp_path):
    result = run("export", checkpoint_folder, tmp_path / "out.gguf", "--format", "gguf", "--type", "q4_0")
    assert (result.returncode, result.stderr) == (0, "")
    assert "q4_0" in result.stdout
    assert_refused(run("export", checkpoint_folder, tmp_path / "out.gguf"), "exists already")
    assert_refused(run("export", checkpoint_folder, tmp_path / "new.gguf", "--threads", 1), "--threads")
