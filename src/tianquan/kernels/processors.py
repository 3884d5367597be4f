"""How many processors this process may use: what its affinity and the limits of its control groups leave.

A container that was given four processors of a host of 64 (`docker run --cpus=4`) sees all of them; as many threads
would wait for their share of four at every meeting.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def available_processors(own_groups: Path = _OWN_GROUPS, mount: Path = _MOUNT) -> int:
    """Return how many threads can run at once: at least 1.

    Args:
        own_groups: the file that names the control groups of this process, as `man 7 cgroups` describes it.
        mount: where control groups are mounted.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(own_groups, mount))]))


def _quotas(own_groups: Path, mount: Path) -> Iterator[float]:
    """Yield the limits, in processors, of the process's groups and of those around them."""
    for line in _text(own_groups).splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":  # version 2
            root, read = mount, _quota
        elif "cpu" in controllers.split(","):
            root, read = mount / controllers, _first_version_quota
        else:
            continue
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            quota = read(group)
            if quota is not None:
                yield quota


def _quota(group: Path) -> float | None:
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    return _share(quota, period)  # "max" for none


def _first_version_quota(group: Path) -> float | None:
    return _share(_text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip())


def _share(quota: str, period: str) -> float | None:
    """Return quota / period, None where there is no limit ("max", -1, or no such file)."""
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
