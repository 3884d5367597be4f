"""The stages in which the embedded model was trained: on what, from which weights, how long and how fast.

The lengths are those of the runs that were made; a stage with a constant rate ended when it stopped paying.
"""

from __future__ import annotations

from embedded_model.deeper_stages import DEEPER_STAGES
from embedded_model.first_stages import FIRST_STAGES
from embedded_model.later_stages import LATER_STAGES
from embedded_model.latest_stages import LATEST_STAGES

SHIPPED = "assure"  # the stage whose weights the package has
STAGES = FIRST_STAGES | LATER_STAGES | DEEPER_STAGES | LATEST_STAGES  # in the order they were trained in


def stages_before(name: str) -> tuple[str, ...]:
    """Return the stages whose weights a stage starts from, the first one first: each saves what it trained alone."""
    before = STAGES[name].after
    return () if before is None else (*stages_before(before), before)
