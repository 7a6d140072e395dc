import os
from pathlib import Path

import pytest

from pixtral_core.server import container

CPUS = len(os.sched_getaffinity(0))
NODE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 1 << 20


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A file system with these groups of the process, and these files of theirs."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


VERSION_1 = "12:memory:/kubepods/pod1\n5:cpu,cpuacct:/kubepods/pod1\n1:name=systemd:/x\n"
CASES: dict[str, tuple[str, dict[str, str], int, int]] = {
    "no control groups": ("", {}, CPUS, NODE_BYTES),
    "no limit": (
        "0::/\n",
        {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        CPUS,
        NODE_BYTES,
    ),
    "version 2, in a container": (
        "0::/\n",
        {"sys/fs/cgroup/memory.max": f"{64 * MIB}\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        1,
        64 * MIB,
    ),
    "version 2, the group above is smaller": (
        "0::/kube/pod/box\n",
        {
            "sys/fs/cgroup/kube/pod/box/memory.max": f"{64 * MIB}\n",
            "sys/fs/cgroup/kube/pod/memory.max": f"{32 * MIB}\n",
            "sys/fs/cgroup/kube/cpu.max": "100000 100000\n",
        },
        1,
        32 * MIB,
    ),
    "more than the node has": (
        "0::/\n",
        {"sys/fs/cgroup/memory.max": f"{1 << 60}\n", "sys/fs/cgroup/cpu.max": "99900000 100000\n"},
        CPUS,
        NODE_BYTES,
    ),
    "version 1": (
        VERSION_1,
        {
            "sys/fs/cgroup/memory/kubepods/pod1/memory.limit_in_bytes": f"{48 * MIB}\n",
            "sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/cpu.cfs_period_us": "100000\n",
        },
        1,
        48 * MIB,
    ),
    "version 1, in a container that sees the node's path": (
        VERSION_1,
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{48 * MIB}\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        CPUS,
        48 * MIB,
    ),
    "a damaged file": ("0::/\n", {"sys/fs/cgroup/cpu.max": "x"}, CPUS, NODE_BYTES),
}


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_limit_counts(name: str, tmp_path: Path) -> None:
    groups, files, cpus, memory_bytes = CASES[name]
    root = tree(tmp_path, groups, files)
    assert container.cpus(root) == cpus
    assert container.memory_bytes(root) == memory_bytes


def test_this_process_has_both() -> None:
    assert 1 <= container.cpus() <= CPUS
    assert MIB <= container.memory_bytes() <= NODE_BYTES
