"""Models as ONNX files."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from .base import Model, VideoModel

#: The last in which GridSample's modes have the names that every runtime knows.
OPSET = 18


def export_onnx(
    model: Model,
    path: str | os.PathLike[str],
    size: Sequence[int] = (1024, 2048),
    *,
    batch: int = 1,
) -> None:
    """Write a model for inference as ONNX, with standard operators alone (opset 18).

    Of a video model it is the step from one frame to the next; key frames are left to the network
    that segments them. The model stays as it is; the file holds what `use_operators(False)` runs.

    Inputs and outputs have fixed sizes. An image model has `image` and `logits`. A video model
    takes `frame`, `state.*` and, where it uses one, `motion.*`, with the names and the order of its
    state's and of `Motion`'s fields, and gives `logits` and `next.*`, the next step's state. The
    file's metadata holds `preprocess` (JSON), `stride` and `align_corners`.

    Args:
        model: any of this package.
        path: of the file.
        size: height and width of the images.
        batch: how many images, or videos, at once.

    Raises:
        ImportError: the exporter's packages are missing: `pip install 'vsegops[onnx]'`.

    Example:
        >>> from vsegops.models import create_model, export_onnx
        >>> export_onnx(create_model("sfnet_df1"), "sfnet.onnx", (512, 1024))  # doctest: +SKIP
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise ImportError("export_onnx needs onnxscript: pip install 'vsegops[onnx]'") from e
    model = copy.deepcopy(model).eval()
    model.use_operators(False)
    inputs = model.example_inputs(size, batch)
    names, outputs = ["image"], ["logits"]
    if isinstance(model, VideoModel):
        _, state, *motion = inputs
        names = ["frame", *_fields("state", state)]
        names += [name for x in motion for name in _fields("motion", x)]
        outputs += _fields("next", state)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=outputs,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(
        preprocess=json.dumps(asdict(model.preprocess)),
        stride=str(model.stride),
        align_corners=str(model.align_corners),
    )
    program.save(path)


def _fields(prefix: str, values: Any) -> list[str]:
    return [f"{prefix}.{name}" for name in values._fields]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter without its notes on packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
