"""What a run tells while it runs: a progress bar, a CSV, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

#: The columns of `metrics.csv`.
COLUMNS = ("step", "epoch", "loss", "rate", "mean_iou")


class Metrics:
    """Of the process with rank 0.

    Args:
        folder: of the run.
        done: steps that count; what an interrupted run wrote of later ones is removed.
        steps: how many there will be.
    """

    def __init__(self, folder: Path, done: int, steps: int) -> None:
        path = folder / "metrics.csv"
        kept: list[dict[str, str]] = []
        if done and path.exists():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            # A run that was killed may have left half a row.
            whole = [row for row in rows if None not in row.values()]
            kept = [row for row in whole if int(row["step"]) <= done]
        self._file = path.open("w", newline="", buffering=1)
        self._table = csv.DictWriter(self._file, COLUMNS)
        self._table.writeheader()
        self._table.writerows(kept)
        self._bar = tqdm(total=steps, initial=done, unit=" steps", disable=None)
        self._board = _board(folder, done)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step."""
        self._table.writerow({"step": step, **values})
        for name, value in values.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)
        shown = {name: f"{value:.4g}" for name, value in values.items()}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._file.close()
        self._bar.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)
