"""Clocks, caches and statistics: how one number is taken.

Candidates are timed sample by sample in turn (A B C, B C A, C A B, ...), so that a machine that
slows down slows all of them. Each sample finds its tensors cold and its code warm, as in a network
that runs: a buffer as large as the last cache is read (not written: dirty lines would be written
back in the timed region), then the same call is made on other tensors, then the clock runs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from .environment import last_level_cache

MIB = 2**20


@dataclass(frozen=True)
class Effort:
    """How much to sample: as many rounds as fit `seconds`, within [`least`, `most`].

    The overhead of a call is taken from so many `batches` of calls.
    """

    seconds: float = 4.0
    least: int = 7
    most: int = 51
    warmup: int = 2
    batches: int = 51

    @staticmethod
    def exactly(rounds: int) -> Effort:
        return Effort(least=rounds, most=rounds)


QUICK = Effort(seconds=0.5, least=3, most=9, warmup=1)


@dataclass
class Candidate:
    """One of the things compared.

    Attributes:
        calls: the same call on sets of tensors of their own, taken in turn.
        context: entered around each sample, outside the timed region.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    turn: int = field(default=0)

    def next(self) -> Callable[[], Any]:
        self.turn += 1
        return self.calls[self.turn % len(self.calls)]


class CpuClock:
    """Wall-clock time of a call."""

    def __init__(self, evicted: int | None = None) -> None:
        size = min(max(last_level_cache(), 32 * MIB), 512 * MIB) if evicted is None else evicted
        self._buffer = torch.ones(size // 4)

    def evict(self) -> None:
        self._buffer.sum()

    def sample(self, call: Callable[[], Any]) -> Callable[[], float]:
        """Run the call; the milliseconds are asked for when everything has run."""
        start = time.perf_counter_ns()
        result = call()
        stop = time.perf_counter_ns()
        del result  # after the clock: to free it is not the call's work
        return lambda: (stop - start) / 1e6

    def finish(self) -> None:
        pass


class CudaClock:
    """Time between two events on the current stream, read only after all samples are queued.

    The buffer is many times the L2 cache. Reading it takes a quarter of a millisecond, in which the
    host queues the sample: without that, a call of many small kernels is timed at launch speed.
    """

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._buffer = torch.ones(max(4 * cache, 1024 * MIB) // 4, device="cuda")
        self._sum = torch.empty((), device="cuda")

    def evict(self) -> None:
        torch.sum(self._buffer, (0,), out=self._sum)

    def sample(self, call: Callable[[], Any]) -> Callable[[], float]:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = call()
        stop.record()
        del result
        return lambda: float(start.elapsed_time(stop))

    def finish(self) -> None:
        torch.cuda.synchronize()


Clock = CpuClock | CudaClock


def clock_for(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()


def interleave(
    candidates: Sequence[Candidate], clock: Clock, effort: Effort, *, warm: bool = False
) -> dict[str, list[float]]:
    """Milliseconds of each candidate's samples. `warm`: each right after itself, untimed."""

    def sample(candidate: Candidate) -> Callable[[], float]:
        with candidate.context():
            other = candidate.next()
            call = other if warm else candidate.next()
            clock.evict()
            result = other()  # kept, so that the sample does not get its memory, which is warm
            milliseconds = clock.sample(call)
            del result
            return milliseconds

    if not candidates:
        return {}
    for candidate in candidates:
        for _ in range(max(effort.warmup, len(candidate.calls))):
            sample(candidate)
    clock.finish()

    start = time.perf_counter()
    for candidate in candidates:
        sample(candidate)
    clock.finish()
    a_round = time.perf_counter() - start

    rounds = min(max(int(effort.seconds / a_round), effort.least), effort.most)
    pending: dict[str, list[Callable[[], float]]] = {c.name: [] for c in candidates}
    with _no_garbage_collection():
        for i in range(rounds):
            for j in range(len(candidates)):
                candidate = candidates[(i + j) % len(candidates)]
                pending[candidate.name].append(sample(candidate))
        clock.finish()
    return {name: [read() for read in reads] for name, reads in pending.items()}


def timing(samples: Sequence[float]) -> dict[str, Any]:
    """Median and spread (the 20th and the 80th percentile) in milliseconds."""
    p20, median, p80 = quantiles(samples, (0.2, 0.5, 0.8))
    return {"median_ms": median, "p20_ms": p20, "p80_ms": p80, "samples": len(samples)}


def quantiles(samples: Sequence[float], at: Sequence[float]) -> list[float]:
    values = torch.tensor(samples, dtype=torch.float64)
    return torch.quantile(values, torch.tensor(at, dtype=torch.float64)).tolist()


def copy_bandwidth(device: str, clock: Clock, size: int | None = None) -> dict[str, Any]:
    """GB/s of a large copy, bytes read plus bytes written, with the threads that are set."""
    size = size or 512 * MIB
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    copy = Candidate("copy", [lambda: target.copy_(source)])
    samples = interleave([copy], clock, Effort(seconds=2, least=7, most=15))["copy"]
    p20, median, p80 = quantiles([2 * size / ms / 1e6 for ms in samples], (0.2, 0.5, 0.8))
    return {"gbps": median, "p20_gbps": p20, "p80_gbps": p80}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` threads within operators."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def per_call(call: Callable[[], Any], device: str, batches: int, batch: int) -> Mapping[str, float]:
    """Microseconds that the host spends on a call; a device works meanwhile and is waited for."""
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    samples = []
    with _no_garbage_collection():
        for _ in range(batches + 2):
            wait()
            start = time.perf_counter_ns()
            for _ in range(batch):
                call()
            samples.append((time.perf_counter_ns() - start) / batch / 1e3)
        wait()
    p20, median, p80 = quantiles(samples[2:], (0.2, 0.5, 0.8))
    return {"median_us": median, "p20_us": p20, "p80_us": p80}
