"""Give a checkpoint's language model more layers that change nothing yet, for training to go on with.

    python -m embedded_model.deepen CHECKPOINT OUTPUT --layers 8

New layers stand between the old ones, after the layer each is a copy of; what a copy would add to the residual stream
is multiplied by zeros (its o_proj and down_proj), so that the deeper model begins by answering what the old one did.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tianquan.checkpoint.safetensors_file import SafetensorsFile, write_safetensors

_OF_LAYER = re.compile(r"llm\.model\.layers\.(\d+)\.(.+)")
_WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")  # into the residual stream


def num_layers(checkpoint: Path) -> int:
    """Return how many layers the language model of a checkpoint has."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return int(config["num_hidden_layers"])


def deepen(checkpoint: Path, output: Path, layers: int) -> None:
    """Write a checkpoint of one float32 file to a new folder, with more layers in its language model.

    Args:
        checkpoint: in the official layout, its tensors float32 in model.safetensors.
        output: must not exist.
        layers: at least those it has, at most twice as many.

    Raises:
        ValueError: so many layers cannot be placed.
    """
    old = num_layers(checkpoint)
    if not old <= layers <= 2 * old:
        raise ValueError(f"{checkpoint}: from {old} to {2 * old} layers can be made of {old}, {layers} were asked for")
    copied = {round(n * old / (layers - old)) for n in range(layers - old)}  # evenly spread
    places = [(source, new) for source in range(old) for new in ((False, True) if source in copied else (False,))]
    stored = SafetensorsFile(checkpoint / "model.safetensors")
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name in stored.tensors:
        values = np.array(stored.read(name), np.float32)
        match = _OF_LAYER.fullmatch(name)
        if match is None:
            tensors[name] = values
            continue
        source, rest = int(match[1]), match[2]
        for place, (of, is_new) in enumerate(places):
            if of == source:
                empty = is_new and rest in _WRITES
                tensors[f"llm.model.layers.{place}.{rest}"] = np.zeros_like(values) if empty else values
    shutil.copytree(checkpoint, output, ignore=shutil.ignore_patterns("model.safetensors"))
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = layers
    (output / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    write_safetensors(output / "model.safetensors", {name: ("F32", values) for name, values in tensors.items()})


def main() -> None:
    """Write the deeper checkpoint."""
    parser = argparse.ArgumentParser(description="Give the language model of a checkpoint more layers.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    arguments = parser.parse_args()
    deepen(arguments.checkpoint, arguments.output, arguments.layers)


if __name__ == "__main__":
    main()
