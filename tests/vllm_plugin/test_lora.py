"""Adapters in peft's format: chosen per request, equal to the same adapter merged by this package."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

import tianquan
from tianquan.checkpoint.names import module_path
from tianquan.checkpoint.safetensors_file import write_safetensors
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.llm import GREEDY
from vllm_plugin.conftest import ENGINE

RANK = 4
SETTINGS = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 8.0,
    "bias": "none",
    "target_modules": ["q_proj", "down_proj"],
}
MESSAGES = [{"role": "user", "content": "Hello! What can you do?"}]


@pytest.fixture(scope="module")
def llm(checkpoint_folder):
    from vllm import LLM

    return LLM(str(checkpoint_folder), enable_lora=True, max_lora_rank=8, max_loras=1, **ENGINE)


def write_adapter(folder, config, parts):
    """An adapter, as `finetune` writes it, of all matrices whose name begins with one of `parts`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {}
    for weight in needed_weights(config):
        if weight.is_matrix and weight.name.startswith(parts):
            prefix = f"base_model.model.{module_path(weight.name)}"
            for half, shape in (("A", (RANK, weight.shape[1])), ("B", (weight.shape[0], RANK))):
                values = rng.normal(0, 0.2, shape).astype(np.float32)
                tensors[f"{prefix}.lora_{half}.weight"] = ("F32", values)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    return folder


def chat(llm, adapter=None):
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    number = 1 + zlib.crc32(str(adapter).encode())  # vLLM loads an adapter when its number is new
    request = None if adapter is None else LoRARequest(adapter.name, number, str(adapter))
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    return list(llm.chat(MESSAGES, params, lora_request=request, use_tqdm=False)[0].outputs[0].token_ids)


def test_an_adapter_of_the_language_model(llm, checkpoint_folder, tmp_path):
    config = tianquan.checkpoint.open_checkpoint(checkpoint_folder).config
    adapter = write_adapter(tmp_path / "adapter", config, ("language_model.layers",))
    answers = []
    for chosen in (None, adapter):
        ours = tianquan.load(checkpoint_folder, precision="float32", backend="reference", adapter=chosen)
        answers.append(ours.chat(MESSAGES, sampling=replace(GREEDY, max_tokens=12, ignore_eos=True)).token_ids)
    base, adapted = answers
    assert base != adapted
    assert chat(llm) == base
    assert chat(llm, adapter) == adapted
    assert chat(llm) == base


def test_an_adapter_of_an_encoder_is_refused(llm, checkpoint_folder, tmp_path):
    config = tianquan.checkpoint.open_checkpoint(checkpoint_folder).config
    adapter = write_adapter(tmp_path / "adapter", config, ("language_model.layers", "vision.layers"))
    with pytest.raises(ValueError, match="q_proj_of_an_encoder_merge_it"):
        chat(llm, adapter)
