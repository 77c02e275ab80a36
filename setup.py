"""Builds the compiled kernels: the CPU's per instruction set, CUDA's where it can, the codec's.

Environment variables:
    VSEGOPS_NATIVE=0       install pure Python (the operators then run on Triton or the reference)
    VSEGOPS_CUDA=0         leave the CUDA kernels out
    VSEGOPS_INSTRUCTION_SETS   for which processors to compile the CPU kernels, say "default;avx2"
                           (fewer compile faster); default: all that PyTorch knows
    TORCH_CUDA_ARCH_LIST   architectures to compile for, say "8.0;9.0+PTX"; default: torch's own
    CXX, CUDA_HOME, MAX_JOBS, VSEGOPS_CXXFLAGS   as usual; the last is added after the C++ flags
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
NATIVE = os.environ.get("VSEGOPS_NATIVE") != "0"
MINIMUM = (2, 11)  # the stable ABI that the kernels are compiled for
TARGET_VERSION = f"0x{MINIMUM[0]:02x}{MINIMUM[1]:02x}000000000000ULL"

#: PyTorch's names of instruction sets, and the flags that it compiles each with itself.
INSTRUCTION_SETS = {"default": []}
if platform.machine() in ("x86_64", "AMD64"):
    avx2 = ["-mavx2", "-mfma", "-mf16c"]
    avx512 = [f"-mavx512{part}" for part in ("f", "bw", "vl", "dq")]
    INSTRUCTION_SETS["avx2"] = avx2
    INSTRUCTION_SETS["avx512"] = [*avx2, *avx512, "-mprefer-vector-width=512"]


def instruction_sets() -> dict[str, list[str]]:
    """Those to compile for, with their flags."""
    asked = re.split(r"[ ;,]+", os.environ.get("VSEGOPS_INSTRUCTION_SETS", ""))
    names = [name for name in asked if name] or list(INSTRUCTION_SETS)
    for name in names:
        if name not in INSTRUCTION_SETS:
            known = ", ".join(INSTRUCTION_SETS)
            raise SystemExit(f"VSEGOPS_INSTRUCTION_SETS: expected some of {known}, got {name!r}.")
    return {name: INSTRUCTION_SETS[name] for name in names}


_PROBE = """
import json, pathlib, torch
print(json.dumps({
    "path": str(pathlib.Path(torch.__file__).parent),
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "architectures": (torch._C._cuda_getArchFlags() or "") if torch.version.cuda else "",
}))
"""


def find_torch() -> dict[str, str]:
    """The torch of the environment that is installed into.

    Build isolation hides it from this process, but not from a fresh interpreter without the
    isolation's variables. (A front end that isolates with an environment of its own leaves only
    VIRTUAL_ENV to go by.)
    """
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME", "PEP517_BUILD_BACKEND")
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    candidates = [sys.executable]
    if "VIRTUAL_ENV" in os.environ:
        candidates.append(str(Path(os.environ["VIRTUAL_ENV"], "bin", "python")))
    for python in candidates:
        probe = subprocess.run(
            [python, "-c", _PROBE], env=clean, cwd="/", capture_output=True, text=True
        )
        if probe.returncode == 0:
            found = json.loads(probe.stdout)
            version = tuple(int(part) for part in re.findall(r"\d+", found["version"])[:2])
            if version < MINIMUM:
                raise SystemExit(f"vsegops needs torch 2.11 or later, found {found['version']}.")
            return found
    raise SystemExit(
        "vsegops is built against PyTorch and found none in this environment. Install it first "
        "(pip install torch), then install vsegops; if torch is there and still not found, add "
        "--no-build-isolation. VSEGOPS_NATIVE=0 installs without compiled kernels."
    )


def find_nvcc() -> str | None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if variable in os.environ:
            nvcc = Path(os.environ[variable], "bin", "nvcc")
            return str(nvcc) if nvcc.exists() else None
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def cuda_refusal(torch: dict[str, str]) -> str | None:
    """Why the CUDA kernels cannot be built here; None if they can."""
    if os.environ.get("VSEGOPS_CUDA") == "0":
        return "VSEGOPS_CUDA=0"
    if not torch["cuda"]:
        return f"torch {torch['version']} is not a CUDA build"
    if find_nvcc() is None:
        return "nvcc was not found (looked at CUDA_HOME, CUDA_PATH, PATH)"
    if not cuda_architectures(torch):
        return f"{find_nvcc()} knows none of torch's architectures ({torch['architectures']})"
    return None


def cuda_architectures(torch: dict[str, str]) -> list[str]:
    """nvcc's -gencode arguments, for TORCH_CUDA_ARCH_LIST or else torch's own architectures.

    Of torch's own those that this nvcc does not know are left out; one that was asked for is not.
    """
    asked = [
        name for name in re.split(r"[ ;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")) if name
    ]
    names = []
    for name in asked:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST: expected numbers like 8.0 or 9.0a+PTX, got {name!r}."
            )
        number = "".join(match.group(1, 2, 3))
        names += [f"sm_{number}", f"compute_{number}"] if match[4] else [f"sm_{number}"]
    nvcc = find_nvcc()
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    flags = []
    for name in names or torch["architectures"].split():
        kind, number = name.split("_")
        if f"compute_{number.rstrip('af')}" in known:
            flags.append(f"-gencode=arch=compute_{number},code={kind}_{number}")
        elif asked:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: {nvcc} does not know {name}.")
    return flags


@dataclass
class Library:
    """One shared library: sources, the compiler's and the linker's flags, and where it goes."""

    output: str
    sources: list[Path]
    flags: list[str]
    link: list[str] = field(default_factory=list)
    compiler: str = "cxx"


def libraries(torch: dict[str, str]) -> list[Library]:
    include = f"-isystem {torch['path']}/include"
    link = [f"-L{torch['path']}/lib", "-ltorch_cpu", "-lc10"]
    abi = [include, f"-DTORCH_TARGET_VERSION={TARGET_VERSION}"]
    # No error numbers and no floating point exceptions: floor and the like become vectors.
    cpu = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
    cpu += ["-Wno-psabi", "-Wno-maybe-uninitialized", *abi]
    cpu_sources = sorted(ROOT.glob("csrc/*/cpu.cpp"))
    found = [
        Library(f"vsegops/lib/cpu_{name}.so", cpu_sources, [*cpu, *flags], link)
        for name, flags in instruction_sets().items()
    ]
    if cuda_refusal(torch) is None:
        flags = [*abi, "-O3", "-DUSE_CUDA", "-lineinfo", *cuda_architectures(torch)]
        cuda_sources = sorted(ROOT.glob("csrc/*/cuda.cu"))
        found.append(
            Library(
                "vsegops/lib/cuda.so",
                cuda_sources,
                flags,
                ["-cudart static", *link, "-ltorch_cuda"],
                "nvcc",
            )
        )
    import pybind11

    python = [f"-isystem {pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    codec = [*python, "-O3", "-fvisibility=hidden"]
    found.append(Library(f"vsegops/_codec{suffix}", [ROOT / "csrc/codec/module.cpp"], codec))
    return found


def ninja_file(wanted: list[Library], target: Path) -> str:
    """All libraries as one build graph; objects are rebuilt when their headers change."""
    cxx = os.environ.get("CXX", "c++")
    extra = os.environ.get("VSEGOPS_CXXFLAGS", "")
    lines = [
        "rule cxx",
        f"  command = {cxx} -std=c++20 -fPIC -Wall -MMD -MF $out.d $flags {extra} -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule nvcc",
        f"  command = {find_nvcc()} -std=c++20 -Xcompiler -fPIC,-Wall -MMD -MF $out.d $flags"
        " -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule link_cxx",
        f"  command = {cxx} -shared {extra} $in -o $out $flags",
        "  description = link $out",
        "rule link_nvcc",
        f"  command = {find_nvcc()} -shared $in -o $out $flags",
        "  description = link $out",
    ]
    for library in wanted:
        objects = []
        for source in library.sources:
            name = f"{Path(library.output).name.split('.')[0]}/{source.parent.name}.o"
            objects.append(name)
            lines += [f"build {name}: {library.compiler} {source}"]
            lines += [f"  flags = {' '.join(library.flags)}"]
        lines += [f"build {target / library.output}: link_{library.compiler} {' '.join(objects)}"]
        lines += [f"  flags = {' '.join(library.link)}"]
    return "\n".join(lines) + "\n"


def build_record(torch: dict[str, str]) -> dict[str, str]:
    """What was compiled, and why the rest was not, in words."""
    refused = cuda_refusal(torch)
    names = [] if refused else [f.partition(",code=")[2] for f in cuda_architectures(torch)]
    return {
        "torch": torch["version"],
        "cpu": f"compiled for {', '.join(instruction_sets())}",
        "cuda": refused or f"compiled for {', '.join(names)}",
    }


def write_record(target: Path, record: dict[str, str]) -> None:
    """Where the package looks for what was built, and why the rest was not."""
    path = target / "vsegops/lib/build.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


class BuildPython(build_py):
    """Copies the Python files; leaves compiled kernels behind where none were asked for."""

    def run(self) -> None:
        super().run()
        if NATIVE:
            return
        target = ROOT if self.editable_mode else Path(self.build_lib)
        for pattern in ("vsegops/lib/*.so", "vsegops/_codec.*.so"):
            for left in target.glob(pattern):
                left.unlink()
        write_record(target, {"cpu": "VSEGOPS_NATIVE=0", "cuda": "VSEGOPS_NATIVE=0"})


class BuildNative(build_ext):
    """Builds everything with ninja, and writes down what was built and why the rest was not."""

    def run(self) -> None:
        torch = find_torch()
        target = ROOT if self.inplace else Path(self.build_lib).resolve()
        for folder in ("vsegops/lib", "vsegops"):
            (target / folder).mkdir(parents=True, exist_ok=True)
        built = [f"cpu_{name}" for name in instruction_sets()]
        if cuda_refusal(torch) is None:
            built.append("cuda")
        for left in (target / "vsegops/lib").glob("*.so"):
            if left.stem not in built:
                left.unlink()
        # One folder of objects per torch, so that environments do not undo each other's work.
        objects = ROOT / "build" / f"native-{torch['version']}-{sysconfig.get_platform()}"
        objects.mkdir(parents=True, exist_ok=True)
        (objects / "build.ninja").write_text(ninja_file(libraries(torch), target))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        status = subprocess.run([sys.executable, "-m", "ninja", "-C", str(objects), *jobs])
        if status.returncode != 0:
            raise SystemExit(
                "The compiled kernels could not be built (see above). "
                "VSEGOPS_NATIVE=0 installs without them."
            )
        record = build_record(torch)
        write_record(target, record)
        summary = "\n".join(f"  {name:6} {text}" for name, text in record.items())
        print(f"\nvsegops, compiled kernels:\n{summary}\n", file=sys.stderr, flush=True)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in Path(self.build_lib).rglob("*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}  # an editable install is built in place


setup(
    packages=[
        *find_packages(include=["vsegops", "vsegops.*"], exclude=["vsegops.models*"]),
        "vsegops.models",
        *(f"vsegops.models.{name}" for name in find_packages("models")),
    ],
    # setuptools is told of extensions so that the wheel is marked as made for one platform.
    ext_modules=[Extension("vsegops._native", sources=[])] if NATIVE else [],
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
)
