"""The processes of a run: one, or as many as `torchrun` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Place:
    """Where a process stands among all.

    Attributes:
        device: that it works on.
        rank: its number.
        world: how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def mean(self, x: Tensor) -> Tensor:
        """Of a number over all processes."""
        if self.world > 1:
            distributed.all_reduce(x)
        return x / self.world

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def join(device: str | None = None) -> Iterator[Place]:
    """Join the processes that `torchrun` started, if it did.

    Args:
        device: such as `"cpu"` or `"cuda"`; None: CUDA where it is. Each process of a machine takes
            a GPU of its own.
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if "WORLD_SIZE" not in os.environ:
        yield Place(kind)
        return
    if kind.type == "cuda":
        kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(kind)
    distributed.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    try:
        yield Place(kind, distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
