"""Random LoRA adapters in peft's format for any checkpoint. No torch is needed."""

from __future__ import annotations

import json

import numpy as np

from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.names import module_path
from tianquan.checkpoint.safetensors_file import write_safetensors
from tianquan.checkpoint.tensor_list import needed_weights

SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 3.0, "bias": "none", "target_modules": []}


def write_adapter(folder, checkpoint_folder, names, *, seed=0, size=0.1, settings=None, tensors=None):
    """Write an adapter of some of our weights; `tensors` replaces tensors, or leaves out those that are None."""
    shapes = {weight.name: weight.shape for weight in needed_weights(open_checkpoint(checkpoint_folder).config)}
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    made = {}
    for name in names:
        out_features, in_features = shapes[name]
        prefix = f"base_model.model.{module_path(name)}"
        made[f"{prefix}.lora_A.weight"] = rng.normal(0, size, (2, in_features)).astype(np.float32)
        made[f"{prefix}.lora_B.weight"] = rng.normal(0, size, (out_features, 2)).astype(np.float32)
    made.update(tensors or {})
    kept = {name: ("F32", value) for name, value in made.items() if value is not None}
    write_safetensors(folder / "adapter_model.safetensors", kept)
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **(settings or {})}))
    return folder, made
