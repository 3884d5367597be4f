"""The resampler with folded constants against the definition."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tianquan.backends.native import NativeOps
from tianquan.backends.reference import ReferenceOps
from tianquan.config import ResamplerConfig
from tianquan.models.resampler import Resampler
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import INT8_G64
from tolerances import CONFORMANCE, REGROUPED, relative_rmse

CONFIG = ResamplerConfig(num_queries=6, hidden_size=96, vision_size=40, num_heads=3, layer_norm_eps=1e-6)
GRIDS = [(4, 4), (3, 7), (3, 7), (3, 7), (3, 7), (3, 7), (1, 1), (1, 90), (11, 2)]


class Weights:
    """Random weights by name, in one format; the same names give the same values."""

    def __init__(self, ops, format=None):
        self._ops = ops
        self._format = format

    def _draw(self, name, *shape):
        return np.random.default_rng(sum(map(ord, name))).standard_normal(shape, np.float32)

    def parameter(self, name, shape):
        return self._ops.array(self._draw(name, *shape))

    def norm(self, name, size):
        return self._ops.array(1 + 0.2 * self._draw(name, size)), self._ops.array(0.3 * self._draw(name + "b", size))

    def linear(self, name, in_features, out_features, bias=False):
        matrix = self._draw(name, out_features, in_features) / np.float32(in_features**0.5)
        matrix += 0.1  # rows with a mean: the norm takes it out again
        weight = DenseTensor(matrix, "float32")
        if self._format == "int8":
            weight = self._ops.quantize(matrix, INT8_G64)
        elif self._format is not None:
            weight = weight.cast(self._format)
        values = DenseTensor(0.3 * self._draw(name + "b", out_features), "float32") if bias else None
        return self._ops.make_linear(weight, values)


class UnfoldedOps(NativeOps):
    def constant_weight(self, linear):
        return None


def patches_of(grids, config=CONFIG):
    count = sum(rows * cols for rows, cols in grids)
    return 2.0 * np.random.default_rng(5).standard_normal((count, config.vision_size), np.float32) + 0.5


def resample(ops, format=None, grids=GRIDS, config=CONFIG):
    return np.array(Resampler(config, Weights(ops, format), ops)(patches_of(grids, config), grids))


def test_folded_equals_the_definition():
    defined, folded = resample(ReferenceOps()), resample(NativeOps(threads=1))
    assert folded.shape == (len(GRIDS), CONFIG.num_queries, CONFIG.hidden_size)
    assert relative_rmse(folded, defined) < CONFORMANCE
    assert np.abs(folded - defined).max() < CONFORMANCE * np.abs(defined).max()


def test_more_channels_in_a_patch_than_in_the_language_model():
    config = replace(CONFIG, vision_size=120)
    defined, folded = (resample(ops, None, GRIDS, config) for ops in (ReferenceOps(), NativeOps(threads=1)))
    assert relative_rmse(folded, defined) < CONFORMANCE


def test_sharp_attention_equals_the_definition():
    """Queries that look at one patch each: scores far apart, as in a trained model."""

    class Sharp(Weights):
        def linear(self, name, in_features, out_features, bias=False):
            scaled = Sharp(self._ops, self._format)
            gain = 6.0 if name.endswith(("query", "key")) else 1.0
            scaled._draw = lambda key, *shape: gain * Weights._draw(self, key, *shape)
            return Weights.linear(scaled, name, in_features, out_features, bias)

    outputs = []
    for ops in (ReferenceOps(), NativeOps(threads=1)):
        outputs.append(np.array(Resampler(CONFIG, Sharp(ops), ops)(patches_of(GRIDS), GRIDS)))
    assert relative_rmse(outputs[1], outputs[0]) < CONFORMANCE


def test_a_slice_alone_equals_the_slice_beside_others():
    ops = NativeOps(threads=1)
    resampler = Resampler(CONFIG, Weights(ops), ops)
    patches = patches_of(GRIDS)
    together = resampler(patches, GRIDS)
    ends = list(itertools.accumulate((rows * cols for rows, cols in GRIDS), initial=0))
    for n, grid in enumerate(GRIDS):
        alone = resampler(patches[ends[n] : ends[n + 1]], [grid])
        assert relative_rmse(alone[0], together[n]) < REGROUPED


@pytest.mark.parametrize("format", ["bfloat16", "float16", "int8"])
def test_folding_loses_no_more_than_the_format(format):
    """Derived from the weights as stored: dense formats lose nothing more, int8 rounds twice as the definition does."""
    exact = resample(ReferenceOps())
    unfolded = relative_rmse(resample(UnfoldedOps(threads=1), format), exact)
    folded = relative_rmse(resample(NativeOps(threads=1), format), exact)
    assert folded < 1.25 * unfolded
