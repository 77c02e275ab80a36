"""One video's way through a network: labels of key frames, and of those that follow them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..base import ImageModel, Model, Motion, VideoModel

Recorder: TypeAlias = "Callable[[Callable[[], Any]], tuple[Callable[[], object], Any]]"

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

    A graph reads and writes at fixed places: frame and motion are copied to theirs, and each graph
    ends by writing the state to where the step's begins. What is returned is overwritten by the
    next call; so copy it, on the same stream.

    Args:
        model, measured: as for `Eager`.
        frame: one of the size. The step is recorded when the first one is called for.
        record: makes the graphs (see `cuda_recorder`).
    """

    def __init__(
        self, model: Model, measured: bool, frame: Tensor, record: Recorder | None = None
    ) -> None:
        start, self._step = functions(model, measured)
        self._record = record or cuda_recorder()
        self._frame = torch.empty_like(frame).copy_(frame)
        self._motion: Motion | None = None
        with torch.no_grad():
            self._state = _copy(start(self._frame)[1])
        self._key, (self._key_labels,) = self._recorded(lambda: start(self._frame))
        self._next: Callable[[], object] | None = None

    def start(self, frame: Tensor) -> Tensor:
        self._frame.copy_(frame)
        self._key()
        return cast(Tensor, self._key_labels)

    def step(self, frame: Tensor, motion: Motion | None) -> tuple[Tensor, Tensor | None]:
        self._frame.copy_(frame)
        if self._next is None:
            self._motion = _copy(motion)
            before = _copy(self._state)
            self._next, self._results = self._recorded(
                lambda: self._step(self._frame, self._state, self._motion)
            )
            _write(before, self._state)
        _write(motion, self._motion)
        self._next()
        labels, disagreement = self._results
        return labels, disagreement

    def _recorded(self, function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """Of a function that gives labels, the state and more: all but the state comes back."""

        def whole() -> Any:
            labels, state, *rest = function()
            _write(state, self._state)
            return labels, *rest

        return self._record(whole)


def _copy(values: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, values)


def _write(source: Any, target: Any) -> None:
    for new, kept in zip(tree_leaves(source), tree_leaves(target), strict=True):
        if isinstance(new, Tensor):
            kept.copy_(new)


def cuda_recorder() -> Recorder:
    """Records functions as CUDA graphs that share their memory, and so never run at once.

    A recorder takes a function and gives what repeats it, and its results, which stay where they
    are. The function is called a few times before.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                function()
        current.wait_stream(aside)
        current.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads copy frames meanwhile: only calls of this thread are part of the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            results = function()
        return graph.replay, results

    return record


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
