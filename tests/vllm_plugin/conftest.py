"""vLLM in this process, on the conformance checkpoint. Skipped as a whole where vLLM is missing; docs/vllm.md."""

from __future__ import annotations

import base64
import importlib.util
import os
from pathlib import Path

import pytest

# Read when vLLM is imported. One process: no engine beside the test; a small cache; no binding to cores others use.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_WAIT_POLICY": "passive",
}
# max_num_batched_tokens: less than a picture, so that prompts are prefilled in chunks that cut through media.
ENGINE = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 128,
    "enforce_eager": True,
    "limit_mm_per_prompt": {"image": 4, "audio": 4},
}


def pytest_configure(config: pytest.Config) -> None:
    os.environ.update(SETTINGS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # vLLM and what it imports warn of their own affairs.
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed; docs/vllm.md says how to"))


@pytest.fixture(scope="session")
def vllm_llm(checkpoint_folder):
    from vllm import LLM

    return LLM(str(checkpoint_folder), **ENGINE)


def data_url(path: Path) -> str:
    kind = {".png": "image/png", ".jpg": "image/jpeg", ".wav": "audio/wav", ".mp3": "audio/mpeg"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def openai_messages(messages: list[dict], media_root: Path) -> list[dict]:
    """The vendor's messages in OpenAI's form."""
    return [{**message, "content": _parts(message["content"], media_root)} for message in messages]


def _parts(content: str | dict, media_root: Path) -> str | list[dict]:
    if isinstance(content, str):
        return content
    parts = []
    for kind in ("image", "audio"):
        names = content.get(kind, [])
        for name in names if isinstance(names, list) else [names]:
            parts.append({"type": f"{kind}_url", f"{kind}_url": {"url": data_url(media_root / name)}})
    return [*parts, {"type": "text", "text": content["text"]}] if "text" in content else parts
