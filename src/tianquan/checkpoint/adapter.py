"""LoRA adapters in peft's format.

    W + scale * B @ A,   scale = alpha / rank, or alpha / sqrt(rank) with rsLoRA

    FOLDER/adapter_config.json, adapter_model.safetensors:  base_model.model.PATH.lora_A.weight (rank, in)
                                                            base_model.model.PATH.lora_B.weight (out, rank)

Source: Hu et al. 2021 (LoRA); Kalajdzievski 2023 (rsLoRA).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import StoredWeight, Weight
from tianquan.checkpoint.config_files import JsonFile
from tianquan.checkpoint.names import module_path
from tianquan.checkpoint.plain_file import is_present
from tianquan.checkpoint.safetensors_file import SafetensorsFile
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.config import ModelConfig
from tianquan.errors import CheckpointError
from tianquan.quantization.adapted import AdaptedTensor
from tianquan.quantization.dense import DenseFormat, DenseTensor

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLED_WEIGHTS = "adapter_model.bin"
KEY_PREFIX = "base_model.model."
_EMBEDDING = "language_model.embedding"
# What changes the mathematics: any other value is refused.
_SUPPORTED = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
}
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")  # that leave the base's weights as they were
_DTYPES: dict[str, DenseFormat] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Adapter:
    """An opened adapter whose tensors fit a model."""

    folder: Path
    factors: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]  # name -> A (r, in), scale * B (out, r)

    @classmethod
    def open(cls, folder: Path, config: ModelConfig) -> Adapter:
        """Read and check an adapter.

        Raises:
            CheckpointError: it is incomplete, of another kind than LoRA, or made for another model.
        """
        if not is_present(folder / ADAPTER_CONFIG):
            raise CheckpointError(f"{folder}: is no adapter; expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} in it")
        if is_present(folder / _PICKLED_WEIGHTS) and not is_present(folder / ADAPTER_WEIGHTS):
            raise CheckpointError(
                f"{folder}: has its weights in {_PICKLED_WEIGHTS}, which may hold code; expected {ADAPTER_WEIGHTS}, "
                "which peft's save_pretrained writes"
            )
        settings = JsonFile.read(folder / ADAPTER_CONFIG)
        for key, supported in _SUPPORTED.items():
            if key in settings and settings.optional(key) not in (supported, None, [], {}):
                raise CheckpointError(f"{folder / ADAPTER_CONFIG}: {key} is not supported; expected {supported!r}")
        first = settings.optional("init_lora_weights") if "init_lora_weights" in settings else None
        if first not in _INITIALISATIONS:
            raise CheckpointError(
                f"{folder / ADAPTER_CONFIG}: init_lora_weights {first!r} changed the weights under it; save it "
                "with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
            )
        rank, alpha = settings.integer("r"), settings.number("lora_alpha")
        scale = alpha / (rank**0.5 if settings.flag("use_rslora", False) else rank)
        tensors = _read_tensors(folder / ADAPTER_WEIGHTS)
        factors = {}
        for weight in needed_weights(config):
            if not weight.is_matrix or weight.name == _EMBEDDING:  # peft has other factors for a table
                continue
            keys = [f"{KEY_PREFIX}{module_path(weight.name)}.lora_{half}.weight" for half in "AB"]
            if not any(key in tensors for key in keys):
                continue
            out_features, in_features = weight.shape
            for key, shape in zip(keys, ((rank, in_features), (out_features, rank)), strict=True):
                got = tensors[key].shape if key in tensors else None
                if got != shape:
                    raise CheckpointError(
                        f"{folder}: {key} has the shape {got}, this model needs {shape}; the adapter is another model's"
                    )
            with np.errstate(over="ignore"):
                factors[weight.name] = (tensors.pop(keys[0]), np.float32(scale) * tensors.pop(keys[1]))
            if not np.isfinite(factors[weight.name][1]).all():
                raise CheckpointError(f"{folder}: {keys[1]} times {scale:g} is beyond float32; train the adapter again")
        if tensors or not factors:
            names = ", ".join(sorted(tensors)[:3]) or "nothing"
            raise CheckpointError(f"{folder}: holds {names}, which this model has no place for; expected LoRA weights")
        return cls(folder, factors)

    def added_to(self, name: str, weight: StoredWeight) -> Weight:
        """Return the matrix (out, in) we call `name`, with its factors beside it if it has any."""
        return AdaptedTensor(weight, *self.factors[name]) if name in self.factors else weight

    @property
    def nbytes(self) -> int:
        """Bytes in memory: the factors, and the second of each once more as the kernels read it."""
        return sum(down.nbytes + 2 * up.nbytes for down, up in self.factors.values())


def _read_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    file = SafetensorsFile(path)
    tensors = {}
    for name, stored in file.tensors.items():
        if stored.dtype not in _DTYPES:
            raise CheckpointError(f"{path}: {name} is {stored.dtype}; expected F32, F16 or BF16")
        values = DenseTensor(file.read(name), _DTYPES[stored.dtype]).to_float32()
        if not np.isfinite(values).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; train or copy the adapter again")
        tensors[name] = values
    return tensors
