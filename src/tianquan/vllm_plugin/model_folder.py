"""What vLLM's processes need of the model folder beside the weights, which vLLM reads by itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vllm.config import ModelConfig as VllmModelConfig
from vllm.transformers_utils.repo_utils import get_non_weight_snapshot_path

from tianquan.checkpoint.config_files import JsonFile, parse_config
from tianquan.checkpoint.loader import open_processor
from tianquan.config import ModelConfig
from tianquan.processing.processor import Processor


@dataclass(frozen=True)
class ModelFolder:
    """The sizes of the model, and what makes its prompts."""

    config: ModelConfig
    processor: Processor


def open_model_folder(model_config: VllmModelConfig) -> ModelFolder:
    """Return the opened folder of vLLM's model, from the hub if it is a hub id. Opened once in a process.

    Raises:
        CheckpointError: a file is missing, damaged, unsupported or does not fit.
    """
    path = get_non_weight_snapshot_path(model_config.model, revision=model_config.revision, token=model_config.hf_token)
    return _open(Path(path))


@lru_cache(maxsize=2)
def _open(folder: Path) -> ModelFolder:
    # How weights are quantized is between vLLM and the folder; it changes nothing that is read here.
    config = parse_config(JsonFile.read(folder / "config.json").without("quantization_config"))
    return ModelFolder(config, open_processor(folder, config))
