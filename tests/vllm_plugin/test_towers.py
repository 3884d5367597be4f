"""The encoders as vLLM holds them: filled from the checkpoint's tensors, equal to the original in every batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tianquan.checkpoint.loader import open_checkpoint
from tianquan.errors import CheckpointError
from tianquan.processing.image import patchify
from tolerances import TOWERS_IN_HALF, conformance, relative_rmse

torch = pytest.importorskip("torch", reason="torch is not installed; docs/vllm.md says how to")
CASES = Path(__file__).parents[1] / "conformance" / "cases"
PICTURES = ["image_sample_7_slices", "image_panorama", "image_upscaled", "two_images"]
SOUNDS = ["audio_1s", "audio_two_lengths", "image_audio_text"]


@pytest.fixture(scope="module")
def tensors(checkpoint_folder):
    found = {}
    for path in checkpoint_folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # not a dict
    return found


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def towers(request, checkpoint_folder, tensors):
    from tianquan.vllm_plugin.towers import AudioTower, VisionTower

    dtype = getattr(torch, request.param)
    config = open_checkpoint(checkpoint_folder).config
    vision, audio = VisionTower(config, dtype), AudioTower(config, dtype)
    for tower, prefix in ((vision, "vision."), (audio, "audio.")):
        filled = [
            name
            for stored, tensor in tensors.items()
            if stored.startswith(prefix)
            for name in tower.load(stored, tensor)
        ]
        assert sorted(filled) == sorted(name for name, _ in tower.named_parameters())
    return vision, audio, conformance() if request.param == "float32" else TOWERS_IN_HALF[request.param]


def case(name, processor, media_root):
    expected = json.loads((CASES / f"{name}.json").read_text())
    return processor(expected["messages"], media_root=media_root), load_file(CASES / f"{name}.safetensors")


@torch.inference_mode()
def test_pictures(towers, processor, media_root):
    vision, _, tolerance = towers
    patches, grids, expected = [], [], []
    for name in PICTURES:  # one batch of pictures of all kinds, as several requests make it
        prompt, tensors = case(name, processor, media_root)
        for image in prompt.images:
            patches.append(torch.from_numpy(np.concatenate([patchify(pixels, 14) for pixels in image.slices])))
            grids.append(torch.tensor([(pixels.shape[0] // 14, pixels.shape[1] // 14) for pixels in image.slices]))
        expected.append(tensors["image_features"])
    features = vision(vision.unpack(patches, grids))
    assert relative_rmse(torch.stack(features).float().numpy(), np.concatenate(expected)) < tolerance


@torch.inference_mode()
def test_sounds(towers, processor, media_root):
    _, audio, tolerance = towers
    mels, sizes, expected = [], [], []
    for name in SOUNDS:  # the clips of a case as the chunks of one recording
        prompt, tensors = case(name, processor, media_root)
        mels.append(torch.from_numpy(np.concatenate([clip.mel for clip in prompt.audios])))
        sizes.append(torch.tensor([(len(clip.mel), clip.num_frames, clip.num_tokens) for clip in prompt.audios]))
        expected += [tensors[f"audio_features.{n}"] for n in range(len(prompt.audios))]
    for got, want in zip(audio(audio.unpack(mels, sizes)), expected, strict=True):
        assert relative_rmse(got.float().numpy(), want) < tolerance


def test_refused_tensors(towers, tensors):
    vision, audio, _ = towers
    name = "vision.vpm.post_layernorm.weight"
    with pytest.raises(CheckpointError, match=r"unexpected; the config\.json is another model's"):
        audio.load(name, tensors[name])
    with pytest.raises(CheckpointError, match=r"has shape \[71\], config\.json asks for \[72\]"):
        vision.load(name, tensors[name][:71])
    with pytest.raises(CheckpointError, match=r"is torch\.int8; expected float32, float16 or bfloat16"):
        vision.load(name, tensors[name].to(torch.int8))
