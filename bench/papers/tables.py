"""What is shown of the runs, beside what the papers report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vsegops.models.training.classes import CATEGORIES

from .speed import over_interval

#: A number of a result (of one seed, as in `papers.json`), or of the speed of a run.
Read = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Column:
    """A measured column. `of_speed`: it reads the run's speed, which has no seeds."""

    title: str
    read: Read
    of_speed: bool = False


@dataclass(frozen=True)
class Row:
    """A run, and what the paper says of it: a number for each of `Table.paper_columns`."""

    title: str
    run: str
    paper: Sequence[float | None] = ()


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        paper: whose runs it shows, a key of `runs.RUNS`.
        source: where the paper has it.
        paper_columns: titles of the paper's own numbers.
        note: what came out otherwise than in the paper, and what explains the numbers.
    """

    paper: str
    title: str
    source: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    paper_columns: Sequence[str] = ("paper's mIoU",)
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Means over seeds, with their spread, of lists of numbers."""

    paper: str
    file: str
    title: str
    x: str
    panels: Mapping[str, Mapping[str, str]]  # title -> label -> run
    values: Callable[[Mapping[str, Any]], Sequence[float]] = field(repr=False)
    #: Places on x, of a run's speed; None: whole numbers from `first` on.
    places: Callable[[Mapping[str, float]], Sequence[float]] | None = field(
        default=None, repr=False
    )
    first: int = 0


def _class_mean(*names: str) -> Read:
    def read(result: Mapping[str, Any]) -> float:
        known = [value for name in names if (value := result["all"][name]) is not None]
        return sum(known) / len(known)

    return read


MEAN = Column("mIoU", lambda result: result["all"]["mean"])
#: What is thin, and what changes its form.
THIN_CLASSES = ("pole", "traffic_sign", "traffic_light")
NON_RIGID_CLASSES = ("person", "rider", "bicycle")
THIN = Column("poles, signs, lights", _class_mean(*THIN_CLASSES))
NON_RIGID = Column("persons, riders, cycles", _class_mean(*NON_RIGID_CLASSES))
LAST = Column("mIoU", lambda result: result["curve"][-1])
FRAME = Column("ms a frame", lambda speed: speed["frame"], of_speed=True)
STEP = Column("ms a step", lambda speed: speed["step"], of_speed=True)
STATE = Column("state, MB", lambda speed: speed["state"], of_speed=True)


def _category(name: str) -> Column:
    return Column(name, lambda result: result["all"][f"category {name}"])


def _minimum(interval: int) -> Column:
    return Column(str(interval), lambda result: result["curve"][interval - 1])


def _average(interval: int) -> Column:
    return Column(str(interval), lambda result: result["average"][interval - 1])


_INTERVALS = range(1, 6)
_LAYERS = {1: (67.3, 69.6, 70.6, 71.6), 2: (65.4, 67.8, 68.6, 69.5)}
_STEPS = {"warp": "warp only", "tuned": "+ fine-tuning", "cfr": "+ CFR", "rga": "+ RGA"}
_TWNET_CATEGORIES = {
    "warp": (43.8, 56.7, 82.2, 86.6, 87.1, 91.6, 96.6),
    "tuned": (51.2, 65.5, 84.6, 89.6, 89.1, 94.0, 97.3),
    "cfr": (62.2, 75.2, 89.7, 91.3, 90.8, 94.2, 97.9),
    "rga": (62.2, 76.1, 90.1, 91.1, 91.0, 94.2, 98.0),
}
_ORDER = ("object", "human", "vehicle", "nature", "construction", "sky", "flat")
assert set(_ORDER) == set(CATEGORIES)

TABLES = (
    Table(
        "sfnet",
        "SFNet and SFNet-Lite",
        "SFNet, table 1 (a); SFNet-Lite, tables 8 (a) and 10 (a), with their frames per second",
        (MEAN, THIN, NON_RIGID, FRAME),
        (
            Row("FPN + PPM", "sfnet_fpn", (76.6, 40.3)),
            Row("+ FAM (SFNet)", "sfnet_fam", (78.3, 19.4)),
            Row("+ FAM, its flow at a tenth of the rate", "sfnet_fam_slow_flow", (None, None)),
            Row("+ one GD-FAM (SFNet-Lite)", "sfnet_lite", (78.3, 24.5)),
        ),
        ("paper's mIoU", "fps"),
        "FAM gains nothing here, and differs more from seed to seed than it could gain; SFNet-Lite "
        "has the most, in the least time. FAM has a flow more to learn than the row before, "
        "so that was slowed down: in the mean nothing changes. Longer training, or larger frames, "
        "were not tried.",
    ),
    Table(
        "gsvnet",
        "GSVNet: features of the current frame; minimum mIoU at key frame intervals",
        "GSVNet, table 4",
        [_minimum(interval) for interval in _INTERVALS],
        (
            Row("with", "gsvnet", (74.4, 72.9, 70.7, 69.6, 67.7)),
            Row("without", "gsvnet_without_intra", (74.4, 72.1, 69.1, 67.4, 65.1)),
        ),
        [f"paper: {interval}" for interval in _INTERVALS],
        "Key frames' logits are reduced to 1/8, here 16 x 32 cells: the network for key frames has "
        "53.8 ± 0.5 on the same streets with logits at 1/4.",
    ),
    Table(
        "gsvnet",
        "GSVNet: kernels of the delays; average mIoU at key frame intervals",
        "GSVNet, tables A5 (delays, and learned kernels of 3 x 3) and A6 (of 5 x 5, interval 5)",
        [*(_average(interval) for interval in _INTERVALS), STEP],
        (
            Row("3 x 3, delays", "gsvnet", (74.4, 73.7, 72.6, 71.8, 70.9)),
            Row("3 x 3, learned", "gsvnet_learned_3x3", (74.4, 73.6, 72.6, 71.8, 70.9)),
            Row("5 x 5, learned", "gsvnet_learned_5x5", (None, None, None, None, 71.1)),
        ),
        [f"paper: {interval}" for interval in _INTERVALS],
    ),
    *(
        Table(
            "twnet",
            f"TWNet, warping layer {layer}",
            "TWNet, table 3",
            (MEAN, THIN, NON_RIGID, STEP),
            [
                Row(title, f"twnet_{layer}_{name}", (paper,))
                for (name, title), paper in zip(_STEPS.items(), _LAYERS[layer], strict=True)
            ],
            note="RGA gains nothing over CFR at this size. The network for key frames has learned "
            "from frames as they were generated, and has 59.4 ± 0.9 on such; on decoded frames, of "
            "which all of this is, it has 56.0 ± 1.5. Fine-tuning sees decoded frames: a part of "
            "its gain is that.",
        )
        for layer in (1, 2)
    ),
    Table(
        "twnet",
        "TWNet, warping layer 1, by categories",
        "TWNet, table 4",
        [_category(name) for name in _ORDER],
        [Row(title, f"twnet_1_{name}", _TWNET_CATEGORIES[name]) for name, title in _STEPS.items()],
        [f"paper: {name}" for name in _ORDER],
    ),
    Table(
        "tmanet",
        "TMANet and its asymmetric variants",
        "Research and Implementation of Video Semantic Segmentation, sections 2 and 5.2 (CamVid, "
        "four frames of memory, ResNet-18)",
        (LAST, STEP, STATE),
        (
            Row("full attention, 2 frames", "tmanet_full", (75.41,)),
            Row("APNB, 2 frames", "tmanet_apnb", (75.28,)),
            Row("APNB + AFNB, 2 frames", "tmanet_apnb_afnb", (76.18,)),
        ),
        note="AFNB gains nothing in the budget, and the attention's kind matters less than the "
        "seed. In half the steps (300) all three had less, 24.3, 24.9 and 24.3, and differed as "
        "little. Poles and signs are not learned at all: SFNet's recipe has 1500 steps, and half "
        "of its samples are drawn for their classes; here 600 steps, of three frames, take as "
        "long, and samples are drawn alike, as published.",
    ),
    Table(
        "tmanet",
        "TMANet with APNB: length of the memory",
        "the same, section 5.2",
        (LAST, STEP, STATE),
        (
            Row("1 frame", "tmanet_apnb_memory_1", (None,)),
            Row("2 frames", "tmanet_apnb", (76.0,)),
            Row("4 frames", "tmanet_apnb_memory_4", (75.28,)),
        ),
        note="No length of the memory gains, or loses, more than seeds differ by; nor did one in "
        "half the steps.",
    ),
)

CURVES = (
    Curve(
        "twnet",
        "papers-twnet.png",
        "TWNet: mIoU over the distance to the key frame (figure 8)",
        "frames from the key frame",
        {
            f"warping layer {layer}": {
                title: f"twnet_{layer}_{name}" for name, title in _STEPS.items()
            }
            for layer in (1, 2)
        },
        lambda result: result["curve"],
    ),
    Curve(
        "gsvnet",
        "papers-gsvnet.png",
        "GSVNet: mIoU over the key frame interval (table 4)",
        "key frame interval",
        {"minimum mIoU": {"with intra features": "gsvnet", "without": "gsvnet_without_intra"}},
        lambda result: result["curve"],
        first=1,
    ),
    Curve(
        "gsvnet",
        "papers-gsvnet-speed.png",
        "GSVNet: average mIoU at intervals 1 to 5 (figure A6)",
        "frames a second, 256x512, one thread",
        {"": {"3 x 3, delays": "gsvnet", "5 x 5, learned": "gsvnet_learned_5x5"}},
        lambda result: result["average"],
        lambda speed: [over_interval(speed, interval) for interval in _INTERVALS],
    ),
)
