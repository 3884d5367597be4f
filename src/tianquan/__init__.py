"""Tianquan runs, serves and adapts Megrez-3B-Omni (text, images and audio in, text out).

    import tianquan
    llm = tianquan.load("path/to/checkpoint")

Importing the package is cheap; what is heavy is imported by what uses it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tianquan.llm import LLM
    from tianquan.loading import load
    from tianquan.request import ImagePolicy, MediaPolicy, OutputFormat, SamplingParams, VideoPolicy

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "ImagePolicy",
    "MediaPolicy",
    "OutputFormat",
    "SamplingParams",
    "VideoPolicy",
    "__version__",
    "load",
]

_HOMES = {
    "LLM": "tianquan.llm",
    "load": "tianquan.loading",
    "ImagePolicy": "tianquan.request",
    "MediaPolicy": "tianquan.request",
    "OutputFormat": "tianquan.request",
    "SamplingParams": "tianquan.request",
    "VideoPolicy": "tianquan.request",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tianquan' has no attribute {name!r}")
