"""A small selection under pytest-benchmark: `pytest bench --benchmark-only`.

The same cases, calls and agreement check as `python -m bench run`, with pytest-benchmark's own
statistics, storage and comparison. The first shape of each operator, float32, one thread. The
candidates of a case run one after the other here; to quote a ratio use `python -m bench run`, which
interleaves them and settles the allocator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vsegops._spec import specs

from . import agreement
from .cases import BASELINES, Selection, Setting, candidate
from .environment import cores
from .timing import Clock, clock_for, threads

pytest.importorskip("pytest_benchmark")

_SELECTION = Selection(
    baselines=("eager",),
    device="cuda" if torch.cuda.is_available() else "cpu",
    first_shape_only=True,
    batches=(1,),
)
_SETTINGS = list(_SELECTION.settings(specs()))


def _id(setting: Setting) -> str:
    return "-".join((setting.spec.name, setting.layout, setting.direction))


@pytest.fixture(scope="module")
def clock() -> Clock:
    return clock_for(_SELECTION.device)


@pytest.fixture(scope="module", params=_SETTINGS, ids=_id)
def checked(request: pytest.FixtureRequest) -> Iterator[tuple[Setting, Sequence[Tensor]]]:
    """A setting and its truth, which all its candidates share."""
    setting: Setting = request.param
    with threads(cores()):
        exact = agreement.truth(setting)
    with threads(setting.threads):
        yield setting, exact


@pytest.mark.parametrize("name", _SELECTION.candidates())
def test_operator(
    checked: tuple[Setting, Sequence[Tensor]], name: str, clock: Clock, benchmark: Any
) -> None:
    setting, exact = checked
    ready = candidate(setting, name)
    check = agreement.with_ours if name in BASELINES else agreement.with_truth
    benchmark.group = _id(setting)

    def wait() -> None:
        clock.evict()
        clock.finish()

    def call() -> None:
        ready.next()()
        clock.finish()

    with ready.context():
        assert check(setting, ready.calls[0](), exact).passed
        benchmark.pedantic(call, setup=wait, rounds=9, warmup_rounds=2)
