"""Changing the tensors of a checkpoint's shard."""

from __future__ import annotations

import json

from json_files import edit_json
from tianquan.checkpoint.safetensors_file import SafetensorsFile, write_safetensors


def rewrite_shard(folder, change):
    """Apply `change` to the tensors of the second shard and bring the index up to date."""
    shard = folder / "model-00002-of-00002.safetensors"
    file = SafetensorsFile(shard)
    tensors = {name: (stored.dtype, file.read(name).copy()) for name, stored in file.tensors.items()}
    change(tensors)
    write_safetensors(shard, tensors)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    kept = {name: where for name, where in weight_map.items() if where != shard.name}
    edit_json(index, weight_map=kept | dict.fromkeys(tensors, shard.name))
