"""Compiles CUDA sources for the host: `csrc/*/cuda.cu` as they are, together with the shim.

The result is kept in `build/cuda_host`, under a name that tells of everything it was made from.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

SHIM = Path(__file__).parent
ROOT = SHIM.parent.parent
CSRC = ROOT / "csrc"
OUTPUT = ROOT / "build" / "cuda_host"

_CHECKED = [
    "-fsanitize=thread,bounds,alignment,signed-integer-overflow",
    "--param=tsan-instrument-func-entry-exit=0",
    "-finline-small-functions",
    "-Wno-attributes",
]

#: For each build the flags of everything, and those of the kernels besides.
BUILDS = {
    "plain": ([], []),
    "portable": (["-DCUDA_HOST_UCONTEXT"], []),  # as on processors whose registers it does not know
    "checked": (["-DCUDA_HOST_CHECKED"], _CHECKED),
    "asan": (["-DCUDA_HOST_ASAN", "-fsanitize=address"], []),
}

_FLAGS = [
    "-std=c++20",
    "-O1",
    "-g",
    "-fPIC",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",  # as nvcc has it
    "-fvisibility=hidden",  # several such libraries are loaded at once
    "-fno-gnu-unique",
    f"-ffile-prefix-map={ROOT}=.",
    "-DTORCH_TARGET_VERSION=0x020b000000000000ULL",
    "-DVSEGOPS_NAMESPACE=vsegops_host",
    "-DVSEGOPS_KEY=CPU",
    f"-I{SHIM}",
    "-include",
    "shim.h",
]


class BuildError(RuntimeError):
    pass


_failed: dict[Path, BuildError] = {}


@cache
def cuda_headers() -> Path | None:
    """nvcc's headers, or else those that NVIDIA's Python packages bring along, where complete."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        homes.append(str(Path(nvcc).resolve().parent.parent))
    folders = [Path(home, "include") for home in homes if home]
    spec = importlib.util.find_spec("nvidia")
    for location in (spec and spec.submodule_search_locations) or ():
        folders += sorted(Path(location).glob("cu*/include"))
    needed = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "crt/host_defines.h", "nv/target")
    return next((f for f in folders if all((f / name).exists() for name in needed)), None)


def missing() -> str | None:
    """Why CUDA sources cannot be built for the host here; None if they can."""
    if cuda_headers() is None:
        return "CUDA's headers were not found (looked at CUDA_HOME, CUDA_PATH, nvcc's, and in packages)"
    if shutil.which(_compiler()) is None:
        return f"the compiler {_compiler()} was not found"
    return None


def families() -> list[Path]:
    return sorted(CSRC.glob("*/cuda.cu"))


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@cache
def _version() -> str:
    return _run([_compiler(), "--version"]) + (_torch() / "version.py").read_text()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _headers(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob("*.h"))


def _name(inputs: Iterable[Path | str]) -> str:
    """A name for what is made from these files and words."""
    digest = hashlib.sha256(_version().encode())
    for item in inputs:
        digest.update(str(item).encode() + b"\0")
        if isinstance(item, Path):
            digest.update(item.read_bytes())
    return digest.hexdigest()[:16]


def _make(target: Path, command: list[str]) -> Path:
    """Runs `command`, which ends with -o, unless `target` is there already; once if it fails."""
    if target in _failed:
        raise _failed[target]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.stem}-{os.getpid()}{target.suffix}")
        try:
            _run([*command, str(partial)])
        except BuildError as error:
            _failed[target] = error
            raise
        partial.replace(target)
    return target


def _compile(source: Path, kind: str) -> Path:
    common, of_kernels = BUILDS[kind]
    flags = [*_FLAGS, *common, *(of_kernels if source.suffix == ".cu" else [])]
    flags += ["-isystem", str(cuda_headers()), "-isystem", str(_torch() / "include")]
    flags += shlex.split(os.environ.get("VSEGOPS_CXXFLAGS", ""))
    headers = [*_headers(SHIM), *_headers(CSRC / "common"), *_headers(source.parent)]
    name = _name([kind, *flags, *headers, source])
    command = [_compiler(), "-x", "c++", *flags, "-c", str(source), "-o"]
    return _make(OUTPUT / f"{source.parent.name}-{source.stem}-{kind}-{name}.o", command)


def together(folder: Path) -> Path:
    """All CUDA sources of a folder as one: its headers are read once."""
    lines = [f'#include "{source}"' for source in sorted(folder.glob("*.cu"))]
    text = "\n".join([*lines, f"// {_name(folder.iterdir())}", ""])
    path = OUTPUT / f"{folder.name}-{_name([text])}" / f"{folder.name}.cu"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def library(kind: str, sources: Iterable[Path]) -> Path:
    """These CUDA sources and the shim as one shared library, made by one process at a time."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with open(OUTPUT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _library(kind, sources)


def _library(kind: str, sources: Iterable[Path]) -> Path:
    # The shim first: of functions of the standard library that both hold, its own are linked,
    # which do not call back.
    shim = [s for s in sorted(SHIM.glob("*.cpp")) if kind == "checked" or s.stem != "checker"]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(lambda source: _compile(source, kind), [*shim, *sources]))
    link = [f"-L{_torch() / 'lib'}", "-ltorch_cpu", "-lc10", "-Wl,-z,defs"]
    if kind == "asan":
        link = ["-fsanitize=address", *link[:-1]]
    command = [_compiler(), "-shared", *map(str, objects), *link, "-o"]
    return _make(OUTPUT / f"{kind}-{_name([*objects, *link])}.so", command)
