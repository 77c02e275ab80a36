"""Fills torch.compile's cache on disk in many processes, so that the measuring one finds it there.

A compiler takes some seconds for each case on one core, most of a run on a machine with a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

import torch
from tqdm import tqdm

from vsegops._spec import specs

from .cases import Selection, candidate


def precompile(selection: Selection, processes: int, seconds: float) -> None:
    """Compile and run once what is selected, for half of so many seconds at most.

    What a compiler refuses is found again, and recorded, when it is measured. One that takes its
    process with it ends this: the rest is compiled when it is measured.
    """
    if "compile" not in selection.baselines:
        return
    end = time.monotonic() + seconds / 2
    count = len(list(selection.settings(specs())))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_one_thread)
    with tqdm(total=count, unit="case", desc="compiling") as bar, suppress(BrokenProcessPool):
        jobs = [pool.submit(_compile, selection, i, end) for i in range(count)]
        for job in as_completed(jobs):
            job.result()
            bar.update()
    pool.shutdown()


def _one_thread() -> None:
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


def _compile(selection: Selection, index: int, end: float) -> None:
    if time.monotonic() > end:  # (one clock for all processes of a machine)
        return
    setting = list(selection.settings(specs()))[index]
    try:
        candidate(setting, "compile").calls[0]()
        if setting.device == "cuda":
            torch.cuda.synchronize()
    except Exception:
        return
