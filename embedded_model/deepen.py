"""Give a checkpoint's language model or vision encoder more layers that change nothing yet, for training to go on with.

    python -m embedded_model.deepen CHECKPOINT OUTPUT --language 8 --vision 8

New layers stand between the old ones, after the layer each is a copy of; what a copy would add to the residual stream
is multiplied by zeros, so that the deeper model begins by answering what the old one did.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tianquan.checkpoint.safetensors_file import SafetensorsFile, write_safetensors

_LAYER = re.compile(r"(llm\.model|vision\.vpm\.encoder)\.layers\.(\d+)\.(.+)")
_WRITES = re.compile(r"(self_attn\.(o_proj|out_proj)|mlp\.(down_proj|fc2))\.(weight|bias)")  # into the residual stream


class Depth(NamedTuple):
    """How many layers a model has."""

    language: int
    vision: int


def depth(checkpoint: Path) -> Depth:
    """Return how many layers the towers of a checkpoint have."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return Depth(int(config["num_hidden_layers"]), int(config["vision_config"]["num_hidden_layers"]))


def deepen(checkpoint: Path, output: Path, new: Depth) -> None:
    """Write a checkpoint of one float32 file to a new folder, with more layers in its towers.

    Args:
        checkpoint: in the official layout, its tensors float32 in model.safetensors.
        output: must not exist.
        new: of each tower at least the layers it has, at most twice as many.

    Raises:
        ValueError: so many layers cannot be placed.
    """
    old = depth(checkpoint)
    order = {
        "llm.model": _order(checkpoint, old.language, new.language),
        "vision.vpm.encoder": _order(checkpoint, old.vision, new.vision),
    }
    stored = SafetensorsFile(checkpoint / "model.safetensors")
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name in stored.tensors:
        values = np.array(stored.read(name), np.float32)
        match = _LAYER.fullmatch(name)
        if match is None:
            tensors[name] = values
            continue
        tower, source, rest = match[1], int(match[2]), match[3]
        for place, (of, is_new) in enumerate(order[tower]):
            if of == source:
                empty = is_new and _WRITES.fullmatch(rest)
                tensors[f"{tower}.layers.{place}.{rest}"] = np.zeros_like(values) if empty else values
    shutil.copytree(checkpoint, output, ignore=shutil.ignore_patterns("model.safetensors"))
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"], config["vision_config"]["num_hidden_layers"] = new
    (output / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    write_safetensors(output / "model.safetensors", {name: ("F32", values) for name, values in tensors.items()})


def _order(checkpoint: Path, old: int, new: int) -> list[tuple[int, bool]]:
    """Return of each layer of a tower the old one it is, or is a copy of, and whether it is new."""
    if not old <= new <= 2 * old:
        raise ValueError(f"{checkpoint}: from {old} to {2 * old} layers can be made of {old}, {new} were asked for")
    copied = {round(n * old / (new - old)) for n in range(new - old)}  # evenly spread
    return [(source, is_new) for source in range(old) for is_new in ((False, True) if source in copied else (False,))]


def main() -> None:
    """Write the deeper checkpoint."""
    parser = argparse.ArgumentParser(description="Give the towers of a checkpoint more layers.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--language", type=int, help="layers; those it has if not given")
    parser.add_argument("--vision", type=int)
    arguments = parser.parse_args()
    old = depth(arguments.checkpoint)
    deepen(arguments.checkpoint, arguments.output, Depth(arguments.language or old[0], arguments.vision or old[1]))


if __name__ == "__main__":
    main()
