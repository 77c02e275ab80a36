#!/usr/bin/env python3
"""What the CUDA kernels take: registers, shared memory, stack, spills, as ptxas reports them.

Compiles every `csrc/*/cuda.cu` for several architectures (which needs nvcc and the headers of a
torch, of any build, but no GPU) and compares with what is recorded for this version of nvcc in
`csrc/resources.json`. Exit status 1: a kernel spills or takes more than is recorded, or is not
recorded at all. (A fourth number in the record is bytes that a kernel is known to spill.)

    python tools/cuda_resources.py            compare
    python tools/cuda_resources.py --record   write down what this nvcc gives
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "csrc" / "resources.json"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ("-std=c++20", "-O3", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL")


class Resources(NamedTuple):
    """Of one kernel on one architecture; bytes but for the registers, all for each thread but
    the shared memory, which is a block's."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def recorded(self) -> list[int]:
        known = [self.spill_stores] if self.spills else []
        return [self.registers, self.shared, self.stack, *known]

    @property
    def spills(self) -> bool:
        return self.spill_stores + self.spill_loads > 0


#: (family, kernel) -> architecture -> what it takes
Table = dict[tuple[str, str], dict[str, Resources]]

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<architecture>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def find_nvcc() -> str | None:
    """As `setup.py` looks for it."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if variable in os.environ:
            nvcc = Path(os.environ[variable], "bin", "nvcc")
            return str(nvcc) if nvcc.exists() else None
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bV(\d+(?:\.\d+)+)", text)
    if found is None:
        raise SystemExit(f"{nvcc} --version says nothing of a version:\n{text}")
    return found.group(1)


def torch_headers() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("torch's headers are needed, and this Python has no torch")
    return Path(spec.origin).parent / "include"


def readable(names: list[str]) -> list[str]:
    """Demangled, without namespaces, results and arguments: `forward_kernel<Planes, float>`."""
    if shutil.which("c++filt"):
        filtered = subprocess.run(
            ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
        )
        names = filtered.stdout.splitlines()
    short = []
    for name in names:
        name = re.sub(r"\(anonymous namespace\)::|^void ", "", name)
        name = re.sub(r"\(.*", "", name)  # arguments
        short.append(re.sub(r"\bvsegops::(\w+::)*", "", name))
    return short


def resources_of(entry: re.Match[str]) -> tuple[str, str, Resources]:
    """(mangled name, architecture, what it takes) of what ptxas says of a kernel."""
    shared = re.search(r"(\d+) bytes smem", entry["rest"])
    numbers = [int(entry[k]) for k in ("stack", "stores", "loads")]
    taken = Resources(int(entry["registers"]), int(shared[1]) if shared else 0, *numbers)
    return entry["name"], entry["architecture"], taken


def measure(nvcc: str, source: Path, architecture: str) -> list[tuple[str, str, Resources]]:
    """(kernel, architecture, what it takes) for each kernel of one source."""
    number = architecture.removeprefix("sm_")
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, f"-isystem={torch_headers()}", "-Xptxas=-v", "-cubin"]
        command += [f"-gencode=arch=compute_{number},code={architecture}"]
        command += [str(source), "-o", str(Path(folder, "kernels.cubin"))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    found = [resources_of(entry) for entry in _ENTRY.finditer(done.stdout + done.stderr)]
    names = readable([name for name, *_ in found])
    return [(name, *rest) for name, (_, *rest) in zip(names, found, strict=True)]


def measure_all(nvcc: str, architectures: list[str]) -> Table:
    work = [(s, a) for s in sorted(ROOT.glob("csrc/*/cuda.cu")) for a in architectures]
    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda item: measure(nvcc, *item), work))
    table: Table = {}
    for (source, _), kernels in zip(work, results, strict=True):
        for name, architecture, taken in kernels:
            table.setdefault((source.parent.name, name), {})[architecture] = taken
    return dict(sorted(table.items()))


def faults(table: Table, record: dict[str, dict[str, dict[str, list[int]]]] | None) -> list[str]:
    """What is wrong, a line each; without a record only spills are."""
    found = []
    for (family, name), taken in table.items():
        for architecture, now in taken.items():
            where = f"{family}: {name} for {architecture}"
            before = (record or {}).get(family, {}).get(name, {}).get(architecture)
            if now.spill_stores > (before[3] if before and len(before) > 3 else 0):
                found.append(
                    f"{where} spills {now.spill_stores} bytes, and loads {now.spill_loads} of them"
                )
            if record is None:
                continue
            if before is None:
                found.append(f"{where} is not recorded (run with --record)")
                continue
            for what, was, is_now in zip(
                ("registers", "bytes of shared memory", "bytes of stack"),
                before[:3],
                now.recorded[:3],
                strict=True,
            ):
                if is_now > was:
                    found.append(f"{where} takes {is_now} {what}, recorded are {was}")
    if record is not None:
        known = {(family, name) for family, kernels in record.items() for name in kernels}
        for family, name in sorted(known - set(table)):
            found.append(f"{family}: {name} is recorded and is no more (run with --record)")
    return found


def write_record(version: str, table: Table) -> None:
    """One line a kernel, so that differences can be read."""
    records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    families: dict[str, dict[str, dict[str, list[int]]]] = {}
    for (family, name), taken in table.items():
        families.setdefault(family, {})[name] = {a: r.recorded for a, r in taken.items()}
    records[version] = families
    lines = []
    for nvcc, by_family in sorted(records.items()):
        blocks = []
        for family, kernels in by_family.items():
            rows = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in kernels.items())
            blocks.append(f"  {json.dumps(family)}: {{\n{rows}\n  }}")
        lines.append(f" {json.dumps(nvcc)}: {{\n" + ",\n".join(blocks) + "\n }")
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def print_table(table: Table, architectures: list[str]) -> None:
    width = max((len(f"{family}: {name}") for family, name in table), default=6)
    print("registers / bytes of shared memory / bytes of stack")
    print(f"{'':{width}}  " + "  ".join(f"{a:>15}" for a in architectures))
    for (family, name), taken in table.items():
        cells = []
        for architecture in architectures:
            r = taken.get(architecture)
            cells.append(
                " / ".join(map(str, r.recorded[:3])) + ("!" if r.spills else "") if r else "-"
            )
        print(f"{f'{family}: {name}':{width}}  " + "  ".join(f"{cell:>15}" for cell in cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write csrc/resources.json")
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), help="say, sm_90")
    arguments = parser.parse_args()
    if arguments.record and arguments.arch != list(ARCHITECTURES):
        parser.error("--record covers every architecture; leave out --arch")
    nvcc = find_nvcc()
    if nvcc is None:
        print("nvcc was not found (looked at CUDA_HOME, CUDA_PATH, PATH)", file=sys.stderr)
        return 2
    version = nvcc_version(nvcc)
    table = measure_all(nvcc, arguments.arch)
    print_table(table, arguments.arch)
    if arguments.record:
        write_record(version, table)
        print(f"\nwritten: {RECORD.relative_to(ROOT)}, for nvcc {version}")
    records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    wrong = faults(table, records.get(version))
    kernels = f"{len(table)} kernels, nvcc {version}"
    if version not in records:
        print(f"\nNothing is recorded for nvcc {version} (--record does); only spills count.")
    if wrong:
        print(f"\n{kernels}: {len(wrong)} faults", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    print(f"\n{kernels}: " + ("nothing above the record" if version in records else "no spills"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
