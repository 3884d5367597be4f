"""The checkpoint's config.json as vLLM and transformers want to see it."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig
from vllm.config import ModelConfig as VllmModelConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from tianquan.vllm_plugin.model_folder import open_model_folder

MODEL_TYPE = "megrezo"  # config.json: model_type; also what the tokenizer and renderer mode are called


class MegrezoConfig(LlamaConfig):
    """The language model's keys, which stand at the top of config.json and are Llama's.

    `vision_config` and `audio_config` stay plain objects: the towers read config.json through `checkpoint/`.
    """

    model_type = MODEL_TYPE


class MegrezoConfigCheck(VerifyAndUpdateConfig):
    """What vLLM calls once its own view of the configuration is made."""

    @staticmethod
    def verify_and_update_model_config(model_config: VllmModelConfig) -> None:
        """Check the folder's configuration, and have this package's renderer make the prompts.

        Raises:
            CheckpointError: a file is missing, damaged or unsupported.
            ValueError: another tokenizer mode was asked for.
        """
        open_model_folder(model_config)
        mode: Any = model_config.tokenizer_mode
        if mode not in ("auto", MODEL_TYPE):
            raise ValueError(f"tokenizer_mode is {mode!r}; this model needs {MODEL_TYPE!r}, which 'auto' chooses")
        model_config.tokenizer_mode = MODEL_TYPE
