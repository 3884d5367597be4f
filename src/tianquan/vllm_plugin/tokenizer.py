"""The checkpoint's tokenizer as vLLM uses it: for text out, grammars and stop tokens. Prompts are encoded by ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.tokenizers.hf import CachedHfTokenizer, HfTokenizer

from tianquan.checkpoint.loader import END_TOKENS


class MegrezoTokenizer(CachedHfTokenizer):
    """Loads the tokenizer; what it returns is one of transformers'."""

    @classmethod
    def from_pretrained(cls, path_or_repo_id: str | Path, *args: Any, **kwargs: Any) -> HfTokenizer:
        """Return the tokenizer of a folder or hub id, with two traps of the official files set right.

        Its tokenizer_config.json can misspell the end of a turn, which would become a new token that the model never
        writes; and it asks for the spaces in what the model wrote to be "cleaned up".
        """
        repaired = {"eos_token": END_TOKENS[0], "clean_up_tokenization_spaces": False}
        return super().from_pretrained(path_or_repo_id, *args, **{**kwargs, **repaired})
