"""Everything here needs Ray, which is not in the development environment; docs/scaling.md tells how to run it."""

from __future__ import annotations

import importlib
import importlib.util
import warnings

if importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    with warnings.catch_warnings():  # Ray's own code warns while it is imported
        warnings.simplefilter("ignore")
        importlib.import_module("ray.data")
        importlib.import_module("ray.serve")
