"""How many processors this process may use: the affinity mask, and the quota of every control group above it (R37)."""

from __future__ import annotations

import math
import os
from pathlib import Path

from .._fast import COMPILED, WORKERS

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def auto_workers() -> int:
    """One worker for each processor. At most half of the table's slots, so that the next gateway can start beside this
    one; and the plain twin of the table is for one process.
    """
    return min(usable_cpus(), WORKERS // 2) if COMPILED else 1


def usable_cpus(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """At least 1. A quota counts in whole processors: more workers than that would stop each other."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    return max(1, math.floor(min(allowed, _quota(cgroups, own))))


def _quota(cgroups: Path, own: Path) -> float:
    """The smallest quota on the way up; ``inf`` without one. In a container the path may not be visible: then the
    mounted root is the group itself."""
    found = math.inf
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in (cgroups, cgroups / "unified") if not controllers else (cgroups / "cpu", cgroups / controllers):
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if not folder.is_relative_to(root):
                    break
                found = min(found, _v2(folder) if not controllers else _v1(folder))
    return found


def _v2(folder: Path) -> float:
    words = _text(folder / "cpu.max").split()
    return _ratio(*words) if len(words) == 2 else math.inf


def _v1(folder: Path) -> float:
    return _ratio(_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float:
    """``max`` and -1 mean that there is no quota."""
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return math.inf
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
