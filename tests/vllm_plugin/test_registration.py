"""What vLLM's processes call: registering is light, may happen twice, and says when the vLLM is another."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from tianquan.vllm_plugin.registration import register


def test_another_vllm_is_told_and_left_alone(monkeypatch, caplog):
    from vllm import version
    from vllm.model_executor.models import ModelRegistry

    monkeypatch.setattr(version, "__version_tuple__", (0, 40, 1))
    monkeypatch.setattr(version, "__version__", "0.40.1")
    before = ModelRegistry.get_supported_archs()
    with caplog.at_level(logging.WARNING):
        register()
    assert "plugin is for vLLM 0.32, this is vLLM 0.40.1" in caplog.text
    assert "install vllm==0.32.*" in caplog.text
    assert ModelRegistry.get_supported_archs() == before


def test_registering_is_lazy_and_may_happen_twice():
    code = (
        "import sys; from tianquan.vllm_plugin.registration import register; register(); register()\n"
        "from vllm.model_executor.models import ModelRegistry\n"
        "assert 'MegrezO' in ModelRegistry.get_supported_archs()\n"
        "print([name for name in sys.modules if name.startswith('tianquan.vllm_plugin.')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.strip().splitlines()[-1]
    assert "towers" not in loaded
    assert "media_processor" not in loaded


def test_the_entry_point_is_installed():
    from importlib.metadata import entry_points

    found = [entry.value for entry in entry_points(group="vllm.general_plugins") if entry.name == "tianquan"]
    assert found == ["tianquan.vllm_plugin.registration:register"]


def test_another_tokenizer_mode_is_refused(checkpoint_folder):
    from vllm.config import ModelConfig

    register()
    with pytest.raises(ValueError, match="tokenizer_mode is 'hf'; this model needs 'megrezo'"):
        ModelConfig(str(checkpoint_folder), tokenizer_mode="hf")


def test_a_damaged_folder_is_told_before_anything_starts(copied_folder):
    from vllm.config import ModelConfig

    register()
    path = copied_folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"unk": "<|unk|>"', '"unk": "<|nothing|>"'))
    with pytest.raises(Exception, match=r"no special token '<\|nothing\|>'"):
        ModelConfig(str(copied_folder))


def test_the_end_of_a_turn_is_spelt_right(copied_folder):
    """The official tokenizer_config.json can misspell it; transformers would make a new token of that."""
    from tianquan.vllm_plugin.tokenizer import MegrezoTokenizer

    path = copied_folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"eos_token": "<|turn_end|>"', '"eos_token": "<|turn_end>"'))
    register()
    tokenizer = MegrezoTokenizer.from_pretrained(copied_folder)
    assert tokenizer.eos_token_id == 985
    assert tokenizer.decode([39, 68, 316, 78, 0]) == "Hello!"
