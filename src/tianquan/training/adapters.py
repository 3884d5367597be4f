"""LoRA through peft: low-rank factors beside the matrices of the module tree, over dense or low-bit weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear

from tianquan.backends.torch import LowBitWeight
from tianquan.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, KEY_PREFIX
from tianquan.checkpoint.names import module_path
from tianquan.checkpoint.new_folder import check_new_folder, new_folder
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.config import ModelConfig
from tianquan.errors import ParameterError
from tianquan.training.module_tree import ModuleTree
from tianquan.training.tensor_file import save_tensors


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """rank: of the factors. alpha: the update is scaled by alpha / rank. dropout: on the factors' input."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 4096:
            raise ParameterError(f"rank is {self.rank}; expected 1 to 4096")
        if not 0.0 < self.alpha <= 1e6:
            raise ParameterError(f"alpha is {self.alpha}; expected above 0, to 1e6")
        if not 0.0 <= self.dropout < 1.0:
            raise ParameterError(f"dropout is {self.dropout}; expected 0 to below 1")


def adapted_names(config: ModelConfig, prefixes: Sequence[str]) -> list[str]:
    """Return the matrices LoRA adapts: all of the parts, without the embedding and the head.

    Adapting those two rarely helps and makes the largest factors.
    """
    return [
        weight.name
        for weight in needed_weights(config)
        if weight.is_matrix
        and any(weight.name.startswith(f"{prefix}.") or weight.name == prefix for prefix in prefixes)
        and not weight.name.startswith(("language_model.embedding", "language_model.head"))
    ]


def attach_lora(tree: ModuleTree, names: Sequence[str], settings: LoraSettings) -> LoraConfig:
    """Put LoRA beside the matrices `names`; only its factors are trainable afterwards. At first it changes nothing.

    Returns:
        peft's configuration, which belongs to the saved adapter.
    """
    tree.set_trainable([])
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[module_path(name) for name in names],
    )
    config._register_custom_module({LowBitWeight: LoraLinear})
    with warnings.catch_warnings():  # peft does not know the low-bit module, and asks for nothing of it but its sizes
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        inject_adapter_in_model(config, tree)
    tree.reattach()
    return config


def save_adapter(tree: ModuleTree, config: LoraConfig, base: str, output: Path) -> None:
    """Write the factors in peft's format. The folder appears whole or not at all.

    Args:
        tree: with adapters attached.
        config: what `attach_lora` returned.
        base: what the adapter was trained on, for people.
        output: a folder that does not exist yet.

    Raises:
        CheckpointError: it cannot be written.
    """
    tensors = {f"{KEY_PREFIX}{name}": value.contiguous() for name, value in get_peft_model_state_dict(tree).items()}
    settings = {**config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    text = json.dumps(settings, indent=1, sort_keys=True, default=sorted) + "\n"
    output = check_new_folder(output)
    with new_folder(output, sum(tensor.nbytes for tensor in tensors.values()) + len(text)) as folder:
        save_tensors(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
