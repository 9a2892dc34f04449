"""The processor cores that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

CPU_FOLDER = Path("/sys/devices/system/cpu")
"""Where Linux describes processors."""

CGROUP_FOLDER = Path("/sys/fs/cgroup")
"""Where Linux describes control groups, by which containers and services are limited."""

CGROUP_OF_PROCESS = Path("/proc/self/cgroup")


def _n_cores(hardware_threads: Iterable[int], cpu_folder: Path) -> int:
    cores = set()
    for i in hardware_threads:
        siblings = cpu_folder / f"cpu{i}/topology/thread_siblings_list"
        cores.add(siblings.read_text() if siblings.is_file() else str(i))
    return len(cores)


def physical_cores(cpu_folder: Path = CPU_FOLDER) -> int:
    """Cores that this process may run on; hardware threads of one core count as one.

    Args:
        cpu_folder: with cpuN/topology/thread_siblings_list for each hardware thread; those without count as cores.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return _n_cores(allowed, cpu_folder)


def processor_time_limit(folder: Path = CGROUP_FOLDER, of_process: Path = CGROUP_OF_PROCESS) -> float:
    """Processor time per time that control groups (version 2) allow this process, e.g. 1.5; infinite without a limit.

    Args:
        folder: with cpu.max ("QUOTA PERIOD" in microseconds, or "max PERIOD") in the folder of each group.
        of_process: its line "0::/PATH" names the group of the process; those above it limit it, too.
    """
    try:
        lines = of_process.read_text().splitlines()
    except OSError:
        return math.inf
    limit = math.inf
    for name in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        group = folder / name
        for limited in (group, *group.parents):
            try:
                quota, period = (limited / "cpu.max").read_text().split()
            except (OSError, ValueError):
                continue  # the root has none
            if quota != "max":
                limit = min(limit, int(quota) / int(period))
    return limit


def allowed_cores(cpu_folder: Path = CPU_FOLDER) -> int | None:
    """How many cores this process may use, where that is fewer than the machine has; None: all.

    Programs that count the cores of the machine start too many threads there, which wait for each other.
    """
    of_machine = _n_cores(range(os.cpu_count() or 1), cpu_folder)
    allowed = physical_cores(cpu_folder)
    if (limit := processor_time_limit()) < allowed:
        allowed = max(1, math.floor(limit))
    return allowed if allowed < of_machine else None
