"""Peak memory of a call, in multiples of its output: 1 is the output and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vsegops._spec import tensor_bytes

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler's log breaks the progress bar


def peak(call: Callable[[], Any], device: str) -> float | None:
    """None where the output is empty or one number. Counts what PyTorch's allocators hand out, not
    `malloc`."""
    call()  # what is allocated once and kept is not the call's
    most, result = _cuda(call) if device == "cuda" else _cpu(call)
    outputs = (result,) if isinstance(result, torch.Tensor) else result
    if max(x.numel() for x in outputs) <= 1:
        return None
    return most / tensor_bytes(*outputs)


def _cuda(call: Callable[[], Any]) -> tuple[int, Any]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


def _cpu(call: Callable[[], Any]) -> tuple[int, Any]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        held += change
        most = max(most, held)
    return most, result
