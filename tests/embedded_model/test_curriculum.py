"""The stages of training fit together."""

from __future__ import annotations

import pytest
from embedded_model.curriculum import STAGES, stages_before
from embedded_model.samples import WEIGHTS

NAMES = list(STAGES)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_goes_on_from_stages_before_it(name):
    before = stages_before(name)
    assert list(before) == NAMES[: NAMES.index(name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_asks_for_tasks_that_there_are(name):
    assert set(STAGES[name].weights or {}) <= set(WEIGHTS)


def test_no_two_stages_see_the_same_samples():
    seeds = [stage.plan.seed for stage in STAGES.values()]
    assert len(set(seeds)) == len(seeds)
