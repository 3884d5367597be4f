"""What `make embedded-model` installs is what the generator asks for."""

from __future__ import annotations

import runpy
from pathlib import Path

from embedded_model.fonts import FAMILIES

SCRIPT = Path(__file__).parents[2] / "scripts" / "system_packages.py"


def test_the_fonts_that_are_installed_are_those_that_are_drawn_with():
    installed = runpy.run_path(str(SCRIPT))["FONTS"].split()
    assert sorted(installed) == sorted({family.package for family in FAMILIES})
