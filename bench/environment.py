"""Where and with what a result was measured; no more than that, and no paths."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import vsegops
from vsegops import _extension

#: Keep the allocator from returning memory between calls, or page faults decide: glibc reads
#: these once, before the first allocation, so a process has to be started with them.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}

_RECORDED = (*ALLOCATOR, "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF")


def start_with_allocator(module: str) -> None:
    """Become `python -m module` with these variables, where some of them are not set."""
    missing = {name: value for name, value in ALLOCATOR.items() if name not in os.environ}
    if missing:
        environment = {**os.environ, **missing}
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def last_level_cache() -> int:
    """Bytes of the processor's last cache, 32 MiB where the system does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    kib = [int(text[:-1]) for path in sizes if (text := path.read_text().strip()).endswith("K")]
    return max(kib, default=32 * 1024) * 1024


def environment() -> dict[str, Any]:
    """The environment as JSON."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "vsegops": vsegops.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels_capability": _extension.cpu_capability,
        "last_level_cache": last_level_cache(),
        "gpu": _gpu(),
        "backends": {name: status.reason for name, status in vsegops.backends().items()},
        "variables": {name: os.environ.get(name) for name in _RECORDED},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _gpu() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "l2_cache": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def _commit() -> str | None:
    """The checkout's commit, with a `+` where tracked files were changed; None outside git."""

    def git(*arguments: str) -> str:
        directory = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
