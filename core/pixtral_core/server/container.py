"""The processors and the memory that this process may use: those of its container, not of the whole
node.

Linux alone. The limits are those of the process's control group and of all groups above it, in
version 2 or version 1.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def cpus(root: Path = _ROOT) -> int:
    """The number of processors that this process may use, at least 1; a part of one counts as
    one."""
    quotas = [quota for quota in _cpu_quotas(root) if quota > 0]
    return max(1, min(len(os.sched_getaffinity(0)), *(math.ceil(each) for each in quotas), 1 << 16))


def memory_bytes(root: Path = _ROOT) -> int:
    """The most bytes that this process and its children may use: the limit above which the kernel
    ends one of them, or the node's memory."""
    node = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (
        _number(directory / name)
        for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes"))
        for directory in _groups(root, controller)
    )
    return min((node, *(limit for limit in limits if limit)))


def _cpu_quotas(root: Path) -> Iterator[float]:
    for directory in _groups(root, ""):
        with suppress(OSError, ValueError):
            # "max 100000" means no limit.
            quota, period = (directory / "cpu.max").read_text().split()
            yield int(quota) / int(period)
    for directory in _groups(root, "cpu"):
        quota_us = _number(directory / "cpu.cfs_quota_us")
        period_us = _number(directory / "cpu.cfs_period_us")
        if quota_us and period_us:
            yield quota_us / period_us


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of the process's group, and of the groups above it.

    `controller` is the name of a controller of version 1. It is empty for version 2, which has all
    controllers in one tree.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        # A container without its own namespace reads the path on the node, but finds its own group
        # at the top.
        yield group
        yield from (above for above in group.parents if above.is_relative_to(top))


def _number(path: Path) -> int | None:
    """None if there is no file, or no limit in it."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
