"""Low-bit folders that are damaged, from the future, or in the way."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tianquan
from json_files import edit_json
from shards import rewrite_shard
from tianquan.checkpoint.low_bit import checksum
from tianquan.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from tianquan.errors import CheckpointError
from tianquan.quantization.dense import round_to_bfloat16

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def saved(random_folder, tmp_path):
    tianquan.load(random_folder, precision="int4").save_low_bit(tmp_path / "saved")
    return tmp_path / "saved"


def test_it_is_self_contained(saved):
    names = {path.name for path in saved.iterdir()}
    components = {f"{name}.safetensors" for name in ("language_model", "vision", "resampler", "audio")}
    files = {"config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}
    assert names == components | files | {"quantization.json"}


def test_a_changed_byte_is_refused(saved):
    path = saved / "language_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        tianquan.load(saved)


def test_swapped_blocks_are_refused(saved):
    path = saved / "language_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-(1 << 17) : -(1 << 16)], data[-(1 << 16) :] = data[-(1 << 16) :], data[-(1 << 17) : -(1 << 16)]
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        tianquan.load(saved)


def test_a_damaged_tower_is_refused_when_it_is_used(saved, media_root):
    path = saved / "vision.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    llm = tianquan.load(saved)
    llm.trace(HELLO)
    with pytest.raises(CheckpointError, match=r"vision\.safetensors: its checksum"):
        llm.trace([{"role": "user", "content": {"image": "tiny_100x60.png"}}], media_root=media_root)


@pytest.mark.parametrize("size", [8, 1 << 21, (1 << 21) + 12345])
def test_any_change_or_swap_of_words_changes_the_checksum(tmp_path, size):
    path = tmp_path / "file"
    original = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    original.tofile(path)
    expected = checksum(path)
    words = size // 8
    pairs = [(0, 0), (0, 1), (0, words - 1), (5, 2048 + 5), (7, 2 * 2048 + 9), (3, 64 * 2048 + 3)]
    for a, b in [(a % words, b % words) for a, b in pairs]:
        changed = original.copy()
        view = changed[: words * 8].view(np.uint64)
        if a == b:
            view[a] ^= 1 << 63
        else:
            view[b] = view[a] ^ 1 << 63  # a difference in the top bit only is the hardest to see
            changed.tofile(path)
            expected = checksum(path)
            view[[a, b]] = view[[b, a]]
        changed.tofile(path)
        assert checksum(path) != expected, (a, b)
    path.write_bytes(b"")
    assert checksum(path) != expected


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_changed_copied_file_is_refused(saved, name):
    text = (saved / name).read_text()
    (saved / name).write_text(text.replace(": ", ":\t", 1) if ": " in text else text.replace(":", ": ", 1))
    with pytest.raises(CheckpointError, match=rf"{name}: (its checksum|has .* bytes)"):
        tianquan.load(saved)


def test_an_added_chat_template_is_refused(saved):
    (saved / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: is not in quantization\.json"):
        tianquan.load(saved)


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_a_truncated_file_is_refused_at_once(saved, size):
    path = saved / "audio.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"audio\.safetensors: has .* bytes, its manifest says"):
        tianquan.load(saved)


def test_a_missing_file_is_refused_at_once(saved):
    (saved / "resampler.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"resampler\.safetensors: not found"):
        tianquan.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "newer"),
        ({"format_version": "x"}, "format_version"),
        ({"recipe": ...}, "recipe"),
        ({"recipe": {"name": "int4\x1b[31m", "rules": [["*", "float32"]], "kv_format": "float16"}}, "name of the"),
        ({"recipe": {"name": 4, "rules": [["*", "float32"]], "kv_format": "float16"}}, "name of the"),
        ({"recipe": {"name": "x", "rules": [], "kv_format": "float16"}}, "cover every weight"),
        ({"recipe": {"name": "x", "rules": [["*", {"bits": 3}]], "kv_format": "float16"}}, "newer version"),
        ({"recipe": {"name": "x", "rules": [["*", "int7"]], "kv_format": "float16"}}, "newer version"),
        ({"recipe": {"name": "x", "rules": [["*", "float32"]], "kv_format": "int2"}}, "newer version"),
        ({"recipe": {"name": "x", "rules": [["*", "float32"]], "kv_format": "float32"}}, "tensors are not those"),
        ({"files": ...}, "files"),
        ({"files": {}}, r"language_model\.safetensors"),
    ],
)
def test_a_changed_manifest_is_refused(saved, change, message):
    edit_json(saved / "quantization.json", **change)
    with pytest.raises(CheckpointError, match=message):
        tianquan.load(saved)


def test_a_config_of_another_model_is_refused(saved):
    path = saved / "config.json"
    edit_json(path, num_hidden_layers=1)
    files = json.loads((saved / "quantization.json").read_text())["files"]
    files["config.json"] = {"bytes": path.stat().st_size, "checksum": checksum(path)}
    edit_json(saved / "quantization.json", files=files)
    with pytest.raises(CheckpointError, match="tensors are not those"):
        tianquan.load(saved)


def test_nothing_is_overwritten_or_left_behind(random_folder, tmp_path):
    llm = tianquan.load(random_folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="exists already"):
        llm.save_low_bit(tmp_path / "full")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CheckpointError, match="exists already"):
        llm.save_low_bit(tmp_path / "file")

    def interrupt(component, done, total):
        if component == "audio":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llm.save_low_bit(tmp_path / "new", interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    llm.save_low_bit(tmp_path / "deep" / "new")
    assert json.loads((tmp_path / "deep" / "new" / "quantization.json").read_text())["format_version"] == 1


def test_an_unusable_output_is_refused_before_any_work(random_folder, tmp_path, monkeypatch):
    llm = tianquan.load(random_folder)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    progress = []
    for name in (".", "/", "../link", "x" * 300):
        with pytest.raises(CheckpointError):
            llm.save_low_bit(name, lambda *report: progress.append(report))
    assert not progress
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "link"]


def test_values_a_format_cannot_hold(copied_folder):
    def change(tensors):
        dtype, data = tensors["audio.audio.proj.weight"]
        data = data.copy()
        data[0, 0] = np.uint16(0x4800_0000 >> 16)  # 131072.0 as bfloat16
        tensors["audio.audio.proj.weight"] = (dtype, data)

    rewrite_shard(copied_folder, change)
    with pytest.raises(CheckpointError, match="float16"):
        tianquan.load(copied_folder, precision="float16").model.load_audio()


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_values_too_small_for_a_format(copied_folder, precision):
    name = "llm.model.layers.1.self_attn.v_proj.weight"
    shard = next(path for path in copied_folder.glob("*.safetensors") if name in SafetensorsFile(path).tensors)
    file = SafetensorsFile(shard)
    tensors = {name: (stored.dtype, file.read(name).copy()) for name, stored in file.tensors.items()}
    dtype, bits = tensors[name]
    values = (bits.astype(np.uint32) << 16).view(np.float32) * np.float32(1e-7)
    tensors[name] = (dtype, round_to_bfloat16(values))
    write_safetensors(shard, tensors)
    with pytest.raises(CheckpointError, match="too small"):
        tianquan.load(copied_folder, precision=precision)
    tianquan.load(copied_folder, precision="bfloat16")
