"""One video's way through a network: labels of key frames, and of those that follow them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..base import ImageModel, Model, Motion, VideoModel

#: Calls before a capture, in which libraries load, choose algorithms and allocate.
WARM_UP = 3


class Network(Protocol):
    """Labels of one frame after the other; the state in between is kept inside."""

    def start(self, frame: Tensor) -> Tensor:
        """Labels `[1, H, W]` of a key frame `[1, 3, H, W]`."""
        ...

    def step(self, frame: Tensor, motion: Motion | None) -> tuple[Tensor, Tensor | None]:
        """Labels of the next frame, and the disagreement, where it is measured."""
        ...


class Eager:
    """Calls the model."""

    def __init__(self, model: Model, measured: bool = False) -> None:
        self._start, self._step = functions(model, measured)
        self._state: Any = None

    def start(self, frame: Tensor) -> Tensor:
        labels, self._state = self._start(frame)
        return cast(Tensor, labels)

    def step(self, frame: Tensor, motion: Motion | None) -> tuple[Tensor, Tensor | None]:
        labels, self._state, disagreement = self._step(frame, self._state, motion)
        return labels, disagreement


class Captured:
    """The same for frames of one size as two CUDA graphs, which cost the host next to nothing.

    A graph reads and writes at fixed places: frame and motion are copied there, and each graph ends
    by writing the state to where the step's begins. What is returned is overwritten by the next
    call on the stream; so copy it, on that stream. Graphs are replayed on the current stream.
    """

    def __init__(self, model: Model, measured: bool, frame: Tensor) -> None:
        """Ready for frames like `frame`; the step is captured when the first one comes."""
        start, self._step = functions(model, measured)
        self._pool = torch.cuda.graph_pool_handle()
        self._frame = torch.empty_like(frame).copy_(frame)
        self._motion: Motion | None = None
        self._state: Any = ()
        self._key, (self._key_labels,) = self._capture(lambda: start(self._frame))
        self._next: torch.cuda.CUDAGraph | None = None

    def start(self, frame: Tensor) -> Tensor:
        self._frame.copy_(frame)
        self._key.replay()
        return cast(Tensor, self._key_labels)

    def step(self, frame: Tensor, motion: Motion | None) -> tuple[Tensor, Tensor | None]:
        self._frame.copy_(frame)
        if self._next is None:
            self._motion = tree_map(torch.clone, motion)
            self._next, self._next_results = self._capture(
                lambda: self._step(self._frame, self._state, self._motion)
            )
        for kept, new in zip(self._motion or (), motion or (), strict=True):
            kept.copy_(new)
        self._next.replay()
        labels, disagreement = self._next_results
        return labels, disagreement

    def _capture(self, function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """A graph of a function that gives labels, the state and more; and all but the state."""
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                _, state, *_ = function()
            if not tree_leaves(self._state):
                self._state = tree_map(torch.clone, state)
        current.wait_stream(aside)
        current.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads copy frames meanwhile: only calls of this thread are part of the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            labels, state, *rest = function()
            for kept, new in zip(tree_leaves(self._state), tree_leaves(state), strict=True):
                kept.copy_(new)
        return graph, (labels, *rest)


def functions(model: Model, measured: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """From a frame to labels and state; from frame, state and motion to those and a disagreement.

    Args:
        measured: whether the disagreement is measured; None comes otherwise.
    """

    def start(frame: Tensor) -> tuple[Tensor, Any]:
        if isinstance(model, VideoModel):
            logits, state = model.start(frame)
            return model.labels(logits, frame.shape[2:]), state
        assert isinstance(model, ImageModel)
        return model.predict(frame), ()

    def step(frame: Tensor, state: Any, motion: Motion | None) -> tuple[Tensor, Any, Any]:
        assert isinstance(model, VideoModel)
        logits, state = model.step(frame, state, motion)
        disagreement = model.disagreement(logits, state) if measured else None
        return model.labels(logits, frame.shape[2:]), state, disagreement

    return start, step
