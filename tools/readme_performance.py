"""Writes the README's performance table from a benchmark's results.

python tools/readme_performance.py bench/results/cpu.json [bench/results/gpu.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
MARK = "<!-- performance -->"
LAYOUTS = {"contiguous": "NCHW", "channels_last": "NHWC"}


def ratio(record: dict[str, Any], baseline: str) -> str:
    found = record["baselines"].get(baseline, {}).get("ratio")
    return "-" if found is None else f"{found:.1f}x"


def rows(results: dict[str, Any], kind: str) -> list[str]:
    """Each operator at the first of its shapes; the figure shows the others."""
    lines = []
    first: dict[str, str] = {}
    for record in results["records"]:
        if record["threads"] not in (None, 1) or record["dtype"] != "float32":
            continue
        if record["shape"] != first.setdefault(record["operator"], record["shape"]):
            continue
        case = f"{record['operator']} {record['direction']}, {record['shape']}"
        time = f"{record['timing']['median_ms']:.2f} ms"
        lines.append(
            f"| {kind} | {case} | {LAYOUTS[record['layout']]} | {time}"
            f" | {ratio(record, 'eager')} | {ratio(record, 'compile')}"
            f" | {record['times_floor']:.1f} |"
        )
    return lines


def section(files: list[Path]) -> str:
    head = [
        "| | case | layout | time"
        " | eager PyTorch takes | `torch.compile` takes | times the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for file in files:
        results = json.loads(file.read_text())
        where = results["environment"]
        device = where["gpu"] or f"{where['cpu']}, {where['cpu_capability']}, one thread"
        kind = "GPU" if where["gpu"] else "CPU"
        head += rows(results, kind)
        bandwidth = ", ".join(f"{copy['gbps']:.0f} GB/s" for copy in results["copy_bandwidth"])
        notes.append(f"{kind}: {device}; copy bandwidth {bandwidth}; torch {where['torch']}.")
    if not any(note.startswith("GPU") for note in notes):
        notes.append("GPU: not measured.")
    return "\n".join([*head, "", "float32, N = 1, caches cold. " + " ".join(notes)])


def main() -> None:
    before, _, after = README.read_text().split(MARK)
    files = [Path(name) for name in sys.argv[1:]]
    README.write_text(f"{before}{MARK}\n\n{section(files)}\n\n{MARK}{after}")


if __name__ == "__main__":
    main()
