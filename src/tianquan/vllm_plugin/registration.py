"""What vLLM calls in each of its processes, through the entry point `vllm.general_plugins`."""

from __future__ import annotations

import logging

SUPPORTED_VERSION = (0, 32)  # of vLLM, major and minor

_ARCHITECTURE = "MegrezO"  # config.json: architectures
_PACKAGE = "tianquan.vllm_plugin"

logger = logging.getLogger(__name__)


def register() -> None:
    """Make the model known to the vLLM of this process. Nothing heavy is imported before the model is asked for.

    With another vLLM than the supported one a warning is all: it may be there for other models.
    """
    from vllm.version import __version__, __version_tuple__

    if tuple(__version_tuple__[:2]) != SUPPORTED_VERSION:
        wanted = ".".join(map(str, SUPPORTED_VERSION))
        logger.warning(
            "tianquan's plugin is for vLLM %s, this is vLLM %s: Megrez-3B-Omni is not registered; "
            "install vllm==%s.* or another version of tianquan",
            wanted,
            __version__,
            wanted,
        )
        return

    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from tianquan.vllm_plugin.hf_config import MODEL_TYPE, MegrezoConfig, MegrezoConfigCheck

    if _ARCHITECTURE in MODELS_CONFIG_MAP:  # vLLM may call this again in the same process
        return
    AutoConfig.register(MODEL_TYPE, MegrezoConfig)
    MODELS_CONFIG_MAP[_ARCHITECTURE] = MegrezoConfigCheck
    TokenizerRegistry.register(MODEL_TYPE, f"{_PACKAGE}.tokenizer", "MegrezoTokenizer")
    RENDERER_REGISTRY.register(MODEL_TYPE, f"{_PACKAGE}.renderer", "MegrezoRenderer")
    ModelRegistry.register_model(_ARCHITECTURE, f"{_PACKAGE}.model:MegrezO")
