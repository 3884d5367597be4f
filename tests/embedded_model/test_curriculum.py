"""The stages of training fit together."""

from __future__ import annotations

import pytest
from embedded_model.curriculum import STAGES
from embedded_model.samples import WEIGHTS

NAMES = list(STAGES)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_goes_on_from_stages_before_it(name):
    assert set(STAGES[name].after) <= set(NAMES[: NAMES.index(name)])
    assert name == NAMES[0] or STAGES[name].after


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_asks_for_tasks_that_there_are(name):
    assert set(STAGES[name].weights or {}) <= set(WEIGHTS)


def test_no_two_stages_see_the_same_samples():
    seeds = [stage.plan.seed for stage in STAGES.values()]
    assert len(set(seeds)) == len(seeds)
