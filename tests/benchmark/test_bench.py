"""The benchmark end to end on a small model: the report has every documented key, and can be shown."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest

from tianquan.benchmark import report as reports
from tianquan.benchmark import run
from tianquan.benchmark.measure import Plan
from tianquan.benchmark.run import run_benchmark
from tianquan.benchmark.synthetic import OFFICIAL_CONFIG
from tianquan.cli.bench import bench
from tianquan.errors import BackendError
from tianquan.quantization.recipes import find_recipe

PLAN = Plan(
    prefill_lens=(16,),
    decode_depths=(0, 40),
    decode_tokens=4,
    image_sizes=((448, 448), (512, 512)),
    audio_seconds=(1,),
    repeats=1,
)


def small_config():
    config = copy.deepcopy(OFFICIAL_CONFIG)
    config.update(hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    config.update(num_attention_heads=4, num_key_value_heads=2)
    config["vision_config"].update(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2)
    config["audio_config"].update(n_state=64, n_head=2, n_layer=1, output_dim=128)
    return config


@pytest.fixture(scope="module")
def result():
    stages = []
    result = run_benchmark(find_recipe("int4"), PLAN, 2, stages.append, small_config())
    assert len(stages) > 8
    return result


@pytest.mark.parametrize(
    "path",
    [
        "ceilings.read_bandwidth_gb_s",
        "ceilings.fma_gflop_s",
        "decode.depth_0.tokens_per_second",
        "decode.depth_0.share_of_bandwidth",
        "decode.depth_40.tokens_per_second",
        "prefill.16.tokens_per_second",
        "vision.448.seconds",
        "vision.512.seconds",
        "audio.1.seconds",
        "first_turn.seconds",
        "second_turn.seconds",
        "engine.concurrency.8.tokens_per_second",
        "engine.second_turn.share_of_first",
        "engine.second_turn.encoder_hit_rate",
        "engine.speculation.copy.speedup",
        "memory.all_bytes",
        "memory.text_only_bytes",
        "memory.weights_bytes",
        "load.seconds",
    ],
)
def test_documented_keys(result, path):
    value = result
    for key in path.split("."):
        value = value[key]
    assert value > 0


def test_slices_are_those_of_the_processor(result):
    assert result["vision"]["448"]["num_slices"] == 1
    assert result["vision"]["512"]["num_slices"] == 3


def test_markdown_and_plot(result, tmp_path):
    markdown = reports.to_markdown(result)
    assert "| prefill, 16 tokens |" in markdown
    assert "picture 512 (3 slices)" in markdown
    reports.plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_drawn_is_refused_before_measuring(monkeypatch, tmp_path):
    monkeypatch.setattr(reports, "find_spec", lambda _: None)
    monkeypatch.setattr(run, "run_benchmark", lambda *_: pytest.fail("measured"))
    with pytest.raises(BackendError, match="a plot needs matplotlib"):
        bench(SimpleNamespace(invoked_subcommand=None), plot=True, output=tmp_path / "b")
