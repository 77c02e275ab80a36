"""Who segments the items of long videos: this process, several on this machine, or a Ray cluster.

`Run` hands items to an engine. What is done is kept in a folder, one file for each item under its
name (`Item.key`); it is not done again, so a run that was interrupted goes on where it was. An item
that fails is tried again, and reported if it keeps failing.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from ..base import Model
from .items import Item, Unsound, cut, job_key, segment_item, whole
from .schedules import Schedule
from .segmenter import VideoSegmenter
from .source import CodecError


@dataclass(frozen=True)
class Job:
    """What is done to every item; it can be sent to other processes and machines.

    Attributes:
        model, schedule, precision, transcode: as for `VideoSegmenter`.
        threads: of PyTorch, in each worker.
    """

    model: Model
    schedule: str | Schedule
    precision: str
    threads: int
    transcode: bool = False

    def segmenter(self, device: str) -> VideoSegmenter:
        """For this process, whose number of threads it sets."""
        torch.set_num_threads(self.threads)
        return VideoSegmenter(
            self.model,
            self.schedule,
            precision=self.precision,
            device=device,
            transcode=self.transcode,
        )


class Engine(Protocol):
    """Segments items, several at a time.

    Attributes:
        slots: how many.
    """

    slots: int

    def submit(self, item: Item) -> Any:
        """Begin; what comes back stands for the labels to be."""
        ...

    def wait(self, running: Sequence[Any]) -> Sequence[Any]:
        """Those that have ended, at least one; or none, after some time."""
        ...

    def result(self, ended: Any) -> bytes:
        """The content of the labels' file; raises what went wrong."""
        ...

    def close(self) -> None:
        """Give up what is running."""
        ...


class Inline:
    """This process, one item after the other."""

    slots = 1

    def __init__(self, segmenter: VideoSegmenter) -> None:
        self._segmenter = segmenter

    def submit(self, item: Item) -> Item:
        return item

    def wait(self, running: Sequence[Item]) -> Sequence[Item]:
        return running

    def result(self, ended: Item) -> bytes:
        return segment_item(self._segmenter, ended)

    def close(self) -> None:
        pass


class Processes:
    """Processes on this machine, one for each device."""

    def __init__(self, job: Job, devices: Sequence[str]) -> None:
        self._job, self._devices, self.slots = pickle.dumps(job), devices, len(devices)
        self._pool: ProcessPoolExecutor | None = None
        self._others: list[Any] = []  # processes that are not the pool's

    def submit(self, item: Item) -> Future[bytes]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            devices = context.Queue()
            for device in self._devices:
                devices.put(device)
            arguments = (self._job, devices)
            self._others = multiprocessing.active_children()
            self._pool = ProcessPoolExecutor(self.slots, context, _begin, arguments)
        return self._pool.submit(_segment, item)

    def wait(self, running: Sequence[Future[bytes]]) -> Sequence[Future[bytes]]:
        return list(wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done)

    def result(self, ended: Future[bytes]) -> bytes:
        try:
            return ended.result()
        except (BrokenProcessPool, CancelledError) as error:  # all that were running with it, too
            self.close()
            raise WorkerDied("the process died that worked on it, or on another item") from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process not in self._others:
                    process.terminate()
        self._pool = None


class WorkerDied(RuntimeError):
    """A worker ended without a word; the item may, or may not, be the reason."""


_segmenter: VideoSegmenter | None = None  # of a worker process


def _begin(job: bytes, devices: Any) -> None:
    global _segmenter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's
    _segmenter = pickle.loads(job).segmenter(devices.get())


def _segment(item: Item) -> bytes:
    assert _segmenter is not None
    return segment_item(_segmenter, item)


class Ray:
    """A Ray cluster: that of `RAY_ADDRESS`, or else one that is started on this machine.

    Args:
        job: what to do.
        device: `"cpu"` or `"cuda"`: what each item is given, one GPU or `job.threads` processors.

    Raises:
        ImportError: Ray is not installed.
    """

    def __init__(self, job: Job, device: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError("Ray is not installed: pip install 'vsegops[ray]'") from error
        self._ray, self._started = ray, not ray.is_initialized()
        if self._started:
            ray.init(log_to_driver=False, logging_level="warning")
        resources = {"num_gpus": 1} if device == "cuda" else {"num_cpus": job.threads}
        total = ray.cluster_resources()
        each = total.get("GPU", 0) if device == "cuda" else total.get("CPU", 0) / job.threads
        if each < 1:
            wanted = "a GPU" if device == "cuda" else f"{job.threads} processors"
            self.close()
            raise RuntimeError(f"Ray has no machine with {wanted} to give to an item")
        self.slots = 2 * int(each)  # the next item waits where the one before ends
        self._job = ray.put(pickle.dumps(job))
        self._remote = ray.remote(max_retries=0, **resources)(_segment_remotely)
        self._device = device

    def submit(self, item: Item) -> Any:
        return self._remote.remote(self._job, self._device, item)

    def wait(self, running: Sequence[Any]) -> Sequence[Any]:
        ended, _ = self._ray.wait(list(running), num_returns=1, timeout=0.5)
        return list(ended)

    def result(self, ended: Any) -> bytes:
        try:
            content: bytes = self._ray.get(ended)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error  # what was raised there
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(str(error).partition("\n")[0]) from error
        return content

    def close(self) -> None:
        if self._started:
            self._ray.shutdown()


def _segment_remotely(job: bytes, device: str, item: Item) -> bytes:
    return segment_item(_segmenter_of(job, device), item)


@lru_cache(maxsize=1)
def _segmenter_of(job: bytes, device: str) -> VideoSegmenter:
    segmenter: VideoSegmenter = pickle.loads(job).segmenter(device)
    return segmenter


# --- the run ----------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of some videos.

    Attributes:
        files: of the labels of each video, in the order of its frames; those of items that failed
            are not there.
        failed: for each video that has such items, their names and why.
        whole: videos that could not be cut after all, because they are damaged.
        resumed: how many items had been done before.
        stopped: whether it ended early, because it was asked to.
    """

    files: dict[Path, list[Path]] = field(default_factory=dict)
    failed: dict[Path, list[str]] = field(default_factory=dict)
    whole: list[Path] = field(default_factory=list)
    resumed: int = 0
    stopped: bool = False


@dataclass
class _Work:
    video: Path
    item: Item
    file: Path
    tries: int = 0
    suspect: bool = False


class Run:
    """Segments videos into files of labels, item by item.

    Args:
        segmenter: which model and schedule.
        engine: who does it.
        folder: for the labels; what is there already, under its name, is not done again.
        about: for `job_key`.
        least: frames of an item.
        retries: how often an item that failed is tried again.
        done: called with the file of each item that is there.
        stop: asked now and then whether to end; what is running is waited for.
    """

    def __init__(
        self,
        segmenter: VideoSegmenter,
        engine: Engine,
        folder: Path,
        *,
        about: str = "",
        least: int = 240,
        retries: int = 2,
        done: Callable[[Path], object] = lambda file: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._segmenter, self._engine, self._folder = segmenter, engine, folder
        self._least, self._retries, self._done, self._stop = least, retries, done, stop
        self._job = job_key(segmenter, about)
        self._running: dict[Any, _Work] = {}
        self._again: deque[_Work] = deque()
        self._outcome = Outcome()

    def __call__(self, videos: Iterable[Path]) -> Outcome:
        """Files of labels of all the videos, as far as it goes."""
        self._outcome = outcome = Outcome()
        self._go_through((video, cut(video, self._segmenter, self._least)) for video in videos)
        if outcome.whole and not outcome.stopped:
            self._go_through((video, iter([whole(video)])) for video in outcome.whole)
        return outcome

    def _go_through(self, videos: Iterator[tuple[Path, Iterator[Item]]]) -> None:
        outcome, running, fresh = self._outcome, self._running, self._fresh(videos)
        while True:
            outcome.stopped = outcome.stopped or self._stop()
            while not outcome.stopped and len(running) < self._engine.slots:
                work = self._take(fresh)
                if work is None:
                    break
                running[self._engine.submit(work.item)] = work
            if not running:
                return
            for ended in self._engine.wait(list(running)):
                self._finish(running.pop(ended), ended)

    def _take(self, fresh: Iterator[_Work]) -> _Work | None:
        if self._running and any(x.suspect for x in (*self._running.values(), *self._again)):
            return None  # suspects run alone, so that it shows which one kills its worker
        return self._again.popleft() if self._again else next(fresh, None)

    def _finish(self, work: _Work, ended: Any) -> None:
        try:
            _write(work.file, self._engine.result(ended))
        except Unsound:
            if work.video not in self._outcome.whole:
                self._outcome.whole.append(work.video)
        except Exception as error:
            work.tries += 1
            work.suspect = isinstance(error, WorkerDied)
            if work.tries <= self._retries and not isinstance(error, CodecError):
                self._again.append(work)
            else:
                self._fail(work.video, work.item.name, error)
        else:
            self._done(work.file)

    def _fail(self, video: Path, name: str, error: Exception) -> None:
        text = str(error).partition("\n")[0] or repr(error)
        text = text if text.startswith(name) else f"{name}: {text}"
        self._outcome.failed.setdefault(video, []).append(text)

    def _fresh(self, videos: Iterator[tuple[Path, Iterator[Item]]]) -> Iterator[_Work]:
        """Items that are not done yet."""
        begun: set[Path] = set()
        for video, items in videos:
            files = self._outcome.files[video] = []
            try:
                for item in items:
                    file = self._folder / f"{item.key(self._job)}.npz"
                    files.append(file)
                    if file in begun:
                        continue
                    begun.add(file)
                    if file.exists():
                        self._outcome.resumed += 1
                        self._done(file)
                    elif video not in self._outcome.whole or item.count is None:
                        yield _Work(video, item, file)
            except (CodecError, OSError) as error:  # it cannot even be opened
                self._fail(video, str(video), error)


def _write(file: Path, content: bytes) -> None:
    """All of it or nothing."""
    partial = file.with_name(f".partial-{os.getpid()}-{file.name}")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
