"""Stages that work at the same time, each in a thread, on one item after the other."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple


class Closed(Exception):
    """Nobody wants more of a channel."""


class Channel:
    """A queue of at most `size` items between two threads that either can close."""

    def __init__(self, size: int) -> None:
        self._size, self._items, self._closed = size, deque[Any](), False
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            if self._closed:
                raise Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Drop what is inside; who waits, or comes later, gets `Closed`."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


class _Item(NamedTuple):
    value: Any
    seconds: tuple[float, ...]


class _End(NamedTuple):
    error: BaseException | None


def pipeline(
    items: Iterable[Any], stages: Sequence[Callable[[Any], Any]], *, queue: int = 2
) -> Generator[tuple[Any, tuple[float, ...]], None, None]:
    """Run items through stages, one after the other, all stages at once.

    Order is kept. At most `queue` items wait in front of a stage, and in front of the caller. What
    a stage (or the items' iterator) raises is raised here, after everything that came before it.
    Closing the generator ends the threads, each after the item that it is at.

    Args:
        items: iterated in a thread of its own.
        stages: each is called in a thread of its own.
        queue: the length of the queues.

    Returns:
        A generator of results, each with the seconds that its item spent: in the iterator, and in
        every stage.
    """
    channels = [Channel(queue) for _ in range(len(stages) + 1)]

    def supply() -> None:
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                value = next(iterator)
            except StopIteration:
                channels[0].put(_End(None))
                return
            channels[0].put(_Item(value, (time.perf_counter() - start,)))
            del value  # or it lives on while the next one is made

    def work(position: int) -> None:
        stage, take, give = stages[position], channels[position].get, channels[position + 1].put
        while True:
            item = take()
            if isinstance(item, _End):
                give(item)
                return
            start = time.perf_counter()
            value = stage(item.value)
            give(_Item(value, (*item.seconds, time.perf_counter() - start)))
            del item, value

    def thread(target: Callable[..., None], channel: Channel, *arguments: Any) -> threading.Thread:
        def run() -> None:
            with suppress(Closed):
                try:
                    target(*arguments)
                except BaseException as error:  # raised in the caller's thread instead
                    channel.put(_End(error))

        return threading.Thread(target=run, name="vsegops pipeline", daemon=True)

    threads = [thread(supply, channels[0])]
    threads += [thread(work, channels[i + 1], i) for i in range(len(stages))]
    try:
        for each in threads:
            each.start()
        while True:
            item = channels[-1].get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item.value, item.seconds
            del item
    finally:
        for channel in channels:
            channel.close()
        for each in threads:
            if each.ident is not None:
                each.join()
