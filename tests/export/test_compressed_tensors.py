from __future__ import annotations

import json

import numpy as np
import pytest

from command_line import assert_refused, run
from tianquan.backends import make_ops
from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.safetensors_file import SafetensorsFile
from tianquan.errors import CheckpointError
from tianquan.export.compressed_tensors import save_compressed_tensors
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import QuantizedTensor
from tianquan.quantization.recipes import find_recipe

QUERY = "llm.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module", params=["int4", "int4-small", "int8"])
def exported(request, checkpoint_folder, tmp_path_factory):
    """The recipe, and the folder."""
    folder = tmp_path_factory.mktemp("compressed") / "model"
    recipe = find_recipe(request.param)
    save_compressed_tensors(open_checkpoint(checkpoint_folder), recipe, folder, make_ops("reference"))
    return recipe, folder


def load_file(path):
    file = SafetensorsFile(path)
    return {name: file.read(name) for name in file.tensors}


def our_weight(checkpoint_folder, recipe, name, shape):
    weights = open_checkpoint(checkpoint_folder).weights(recipe, make_ops("reference"))
    tensor = weights.weight(name, shape[1], shape[0])
    assert isinstance(tensor, QuantizedTensor)
    return tensor.dequantize()


def test_dequantized_by_the_words_of_the_format(exported, checkpoint_folder):
    """Word by word, with Python's integers: what the format's description says, not what the writer does."""
    recipe, folder = exported
    tensors = load_file(folder / "model.safetensors")
    bits = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"][
        "weights"
    ]["num_bits"]
    rows, columns = tensors[f"{QUERY}.weight_shape"].tolist()
    words, scales = tensors[f"{QUERY}.weight_packed"], tensors[f"{QUERY}.weight_scale"]
    expected = our_weight(checkpoint_folder, recipe, "language_model.layers.1.attention.query", (rows, columns))
    rng = np.random.default_rng(0)
    for row, column in zip(rng.integers(0, rows, 200).tolist(), rng.integers(0, columns, 200).tolist()):
        place = column * bits
        word = int(words[row, place // 32]) & 0xFFFFFFFF
        code = (word >> place % 32) % 2**bits - 2 ** (bits - 1)
        scale = float(scales[row, column * scales.shape[1] // columns])
        assert np.float32(code * scale) == expected[row, column]


def test_dequantized_by_the_formats_own_library(exported, checkpoint_folder):
    pytest.importorskip("compressed_tensors")
    torch = pytest.importorskip("torch")
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationConfig

    recipe, folder = exported
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    parsed = QuantizationConfig.model_validate(config)
    scheme = parsed.config_groups["group_0"].weights
    path = folder / "model.safetensors"
    tensors = {name: torch.from_numpy(values.copy()) for name, values in load_file(path).items() if QUERY in name}
    shape = torch.Size(tensors[f"{QUERY}.weight_shape"].tolist())
    codes = unpack_from_int32(tensors[f"{QUERY}.weight_packed"], scheme.num_bits, shape)
    scales = tensors[f"{QUERY}.weight_scale"].float().repeat_interleave(scheme.group_size, dim=1)
    expected = our_weight(checkpoint_folder, recipe, "language_model.layers.1.attention.query", tuple(shape))
    np.testing.assert_array_equal((codes.float() * scales).numpy(), expected)


def test_all_else_is_as_it_was(exported, checkpoint_folder):
    _, folder = exported
    tensors = load_file(folder / "model.safetensors")
    files = open_checkpoint(checkpoint_folder).files
    kept = [name for name in files.tensors if name in tensors]
    packed = {name.removesuffix("_packed") for name in tensors if name.endswith(".weight_packed")}
    assert set(kept) | packed == set(files.tensors)
    assert all(name.startswith("llm.model.layers.") for name in packed)
    assert len(packed) == 7 * 3  # matrices of a layer, layers
    for name in ("llm.lm_head.weight", "vision.resampler.query", "audio.audio.conv1.weight"):
        assert tensors[name].tobytes() == files.dense(name).data.tobytes()
    assert {path.name for path in folder.iterdir()} >= {"tokenizer.json", "preprocessor_config.json"}


def test_values_that_are_no_numbers_are_not_copied(checkpoint_folder, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(checkpoint_folder)
    dense = type(checkpoint.files).dense

    def broken(files, name):
        found = dense(files, name)
        return DenseTensor(np.full(found.shape, np.nan, np.float32), "float32") if "embed_tokens" in name else found

    monkeypatch.setattr(type(checkpoint.files), "dense", broken)
    with pytest.raises(CheckpointError, match=r"embed_tokens.* infinite or NaN"):
        save_compressed_tensors(checkpoint, find_recipe("int4"), tmp_path / "out", make_ops("reference"))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written(checkpoint_folder, tmp_path):
    checkpoint, ops = open_checkpoint(checkpoint_folder), make_ops("reference")
    for name in ("int4-asym", "bfloat16"):
        with pytest.raises(CheckpointError, match="no one symmetric low-bit format"):
            save_compressed_tensors(checkpoint, find_recipe(name), tmp_path / "out", ops)
    checkpoint.save_low_bit(find_recipe("int4"), tmp_path / "low", ops)
    with pytest.raises(CheckpointError, match="low-bit folder"):
        save_compressed_tensors(open_checkpoint(tmp_path / "low"), find_recipe("int4"), tmp_path / "out", ops)
    assert not (tmp_path / "out").exists()


def test_command(checkpoint_folder, tmp_path):
    export = ("export", checkpoint_folder, tmp_path / "out", "--format", "compressed-tensors", "--recipe", "int8")
    result = run(*export)
    assert (result.returncode, result.stderr) == (0, "")
    assert "int8" in result.stdout
    assert_refused(run(*export), "exists already")
    assert_refused(run("export", checkpoint_folder, tmp_path / "x", "--recipe", "int4"), "--recipe", "--type")


def test_such_a_folder_is_not_for_this_engine(exported):
    _, folder = exported
    with pytest.raises(CheckpointError, match=r"another engine's low bits .* give the original folder"):
        open_checkpoint(folder)
