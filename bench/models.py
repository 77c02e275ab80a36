"""Frames per second of the reference models, with and without the operators.

    python -m bench.models                                     # all of them; some minutes
    python -m bench.models sfnet_df1 twnet_resnet18 --compile  # these, and compiled as well
    python -m bench.models --size 1024 2048                    # the papers' size, as on a GPU

Writes `bench/output/models-cpu.json` (or `-cuda`) and prints tables. A frame is the network and the
labels at the size of the frame. On a CPU: float32, one thread, a quarter of the papers' pixels or
less; on a GPU: float16, channels_last, in CUDA graphs. Weights are random, normalisations fitted.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from vsegops.models import Model, VideoModel, create_model, list_models
from vsegops.models.untrained import calibrate

from .cases import first_line
from .environment import environment, start_with_allocator
from .report import number, table
from .timing import Candidate, Effort, clock_for, interleave, threads, timing

OUTPUT = Path(__file__).parent / "output"
#: Height and width of the frames: (of Cityscapes, of CamVid for TMANet and those beside it).
SIZES = {"cpu": ((256, 512), (240, 320)), "cuda": ((1024, 2048), (720, 960))}
ON_CAMVID = ("tmanet", "nonlocal", "pspnet")

#: What is measured beside `create_model(name)`.
OPTIONS: dict[str, Sequence[dict[str, Any]]] = {
    **{f"twnet_{x}": [{"layer": i} for i in (1, 2, 3)] for x in ("mobilenetv1", "mobilenetv2")},
    "twnet_resnet18": [{"layer": i} for i in (1, 2, 3)],
    "tmanet_resnet18": [
        {"attention": "full"},
        {"attention": "apnb"},
        {"attention": "apnb", "afnb": True},
        {"attention": "criss_cross"},
    ],
}
#: The papers' speed-ups over their own network for key frames: of TWNet by a step, at each layer;
#: of GSVNet (142 and 140 frames a second against 63.2 and 62) over an interval of 4.
PAPERS = {
    "twnet_mobilenetv1": (1.74, 2.39, 3.37),
    "twnet_mobilenetv2": (1.85, 2.55, 3.59),
    "twnet_resnet18": (1.72, 2.35, 3.26),
    "gsvnet_swiftnet_resnet18": (2.25,),
    "gsvnet_bisenet_resnet18": (2.26,),
}
INTERVAL = 4
EFFORT = Effort(seconds=4.0, least=5, most=15, warmup=1)


def variants(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for options in OPTIONS.get(name, [{}]):
        yield ", ".join([name, *(f"{k}={v}" for k, v in options.items())]), options


def passes(model: Model, size: Sequence[int]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What is timed: a frame alone, and of a video the step to a frame with its state."""
    example = model.example_inputs(size)
    frame = example[0].contiguous(memory_format=_layout(example[0]))
    yield "frame", (frame,)
    if isinstance(model, VideoModel):
        with torch.no_grad():
            yield "step", (frame, model.start(frame)[1], *example[2:])


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_cuda else torch.contiguous_format


def measure(
    name: str, options: dict[str, Any], device: str, size: Sequence[int], *, compiled: bool
) -> dict[str, Any]:
    """Milliseconds of each pass of one model, each way, and whether the ways agree."""
    torch.manual_seed(0)
    model = calibrate(create_model(name, **options).to(device))
    if device == "cuda":
        model = model.half().to(memory_format=torch.channels_last)
    assert isinstance(model, Model)
    plain = copy.deepcopy(model)
    plain.use_operators(False)
    ways: dict[str, tuple[Callable[..., Any], Model]] = {
        "operators": (model, model),
        "without": (plain, plain),
    }
    if compiled:
        torch._dynamo.reset()  # models share code, which is compiled a few times at most
        ways |= {f"{way}, compiled": (torch.compile(x), x) for way, (x, _) in ways.items()}  # type: ignore[arg-type]
    clock, record = clock_for(device), {}
    for part, arguments in passes(model, size):
        candidates, logits, failed = [], {}, {}
        for way, (network, of_labels) in ways.items():
            try:
                call = _call(network, of_labels, arguments, device)
                logits[way] = call()[0].float()
            except Exception as error:  # what a compiler raises is a finding
                failed[way] = first_line(error)
                continue
            candidates.append(Candidate(way, [call]))
        with torch.no_grad():
            samples = interleave(candidates, clock, EFFORT)
        truth = logits["without"]
        record[part] = {
            "timing": {way: timing(x) for way, x in samples.items()},
            "difference": {way: _difference(x, truth) for way, x in logits.items()},
            "failed": failed,
        }
    return record


def _call(
    network: Callable[..., Any], model: Model, arguments: tuple[Any, ...], device: str
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A frame: gives logits and labels."""

    def run() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = tree_leaves(network(*arguments))[0]
            return logits, model.labels(logits, arguments[0].shape[2:])

    if device != "cuda":
        run()
        return run
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is compiled, chosen or allocated at first use
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return result

    return replay


def _difference(x: Tensor, truth: Tensor) -> float:
    """Root of the mean square of the difference, relative to that of the truth."""
    return float(((x - truth).square().mean() / truth.square().mean()).sqrt())


def agrees(record: dict[str, Any], device: str) -> bool:
    """Few logits differ: those where a rounding moved an argmax (GSVNet's edges) do, by much."""
    return max(record["difference"].values()) < (0.05 if device == "cuda" else 0.01)


# --- tables ------------------------------------------------------------------------------------


def speed_table(results: dict[str, Any]) -> str:
    ways = list(
        dict.fromkeys(
            w
            for m in results["models"]
            for p in m["passes"].values()
            for w in (*p["timing"], *p["failed"])
        )
    )
    rows = []
    for model in results["models"]:
        for part, record in model["passes"].items():
            fps = {way: 1e3 / x["median_ms"] for way, x in record["timing"].items()}
            cells = [
                number(fps.get(way)) if way not in record["failed"] else "failed" for way in ways
            ]
            gain = number(fps["operators"] / fps["without"])
            rows.append(
                [
                    model["model"],
                    part,
                    "x".join(map(str, model["size"])),
                    *cells,
                    gain if agrees(record, results["device"]) else "disagrees",
                ]
            )
    return table(["frames per second", "", "size", *ways, "with/without"], rows)


def video_table(results: dict[str, Any]) -> str:
    rows = []
    for model in results["models"]:
        if "step" not in model["passes"] or model["name"].startswith("tmanet"):
            continue
        parts = model["passes"]
        if not all(agrees(parts[x], results["device"]) for x in ("frame", "step")):
            continue
        key, step = (parts[x]["timing"]["operators"]["median_ms"] for x in ("frame", "step"))
        interval = INTERVAL * key / (key + (INTERVAL - 1) * step)
        papers: Sequence[float] = PAPERS.get(model["name"], ())
        paper = papers[model["options"].get("layer", 1) - 1] if papers else None
        whole = model["name"].startswith("gsvnet")
        rows.append(
            [
                model["model"],
                number(key / step),
                number(paper) if paper and not whole else "",
                number(interval),
                number(paper) if paper and whole else "",
            ]
        )
    header = ["key frame's time over", "a step's", "paper", f"the mean of {INTERVAL}", "paper"]
    return table(header, rows)


def main(argv: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m bench.models", None, __doc__, formatter_class=layout
    )
    parser.add_argument("models", nargs="*", help="names; default: all")
    parser.add_argument("--size", nargs=2, type=int, help="height and width, for every model")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--compile", action="store_true", help="and by torch.compile: minutes more")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args(argv)
    unknown = set(arguments.models) - set(list_models())
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = [(name, *x) for name in arguments.models or list_models() for x in variants(name)]
    measured = []
    with threads(1), tqdm(chosen, unit="model") as bar:
        for name, label, options in bar:
            bar.set_postfix_str(label)
            size = arguments.size or SIZES[device][name.startswith(ON_CAMVID)]
            record = measure(name, options, device, size, compiled=arguments.compile)
            measured.append(
                {
                    "model": label,
                    "name": name,
                    "options": options,
                    "size": list(size),
                    "passes": record,
                }
            )
    results = {"device": device, "environment": environment(), "models": measured}
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"models-{device}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(speed_table(results), video_table(results), f"written: {path}", sep="\n\n")
    return 0


if __name__ == "__main__":
    start_with_allocator("bench.models")
    sys.exit(main())
