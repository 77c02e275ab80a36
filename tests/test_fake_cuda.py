"""Models and losses on CUDA tensors that hold nothing: no GPU is needed.

PyTorch's fake tensors have sizes, dtypes and devices. They refuse a tensor that was left on the
CPU, and a value that the host would have to wait for, which a CUDA graph could not have either.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_map_only

pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")
pytest.importorskip("tqdm")

from vsegops.models import Motion, VideoModel, create_model, list_models  # noqa: E402
from vsegops.models.training import tasks  # noqa: E402
from vsegops.models.training.recipes import RECIPES  # noqa: E402

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="torch is not a CUDA build")

SIZE = (64, 128)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA")
        yield


def fake(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """As it would be on a GPU, features as they are stored there."""
    dtype = dtype if dtype is not None and x.is_floating_point() else x.dtype
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return torch.empty(x.shape, dtype=dtype, device="cuda", memory_format=layout)


def all_fake(values: Any, dtype: torch.dtype | None = None) -> Any:
    return tree_map_only(Tensor, lambda x: fake(x, dtype), values)


def move(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """`module.to("cuda", dtype)`, which fake tensors cannot."""
    for part in module.modules():
        for name, x in part._parameters.items():
            # GSVNet's delays are read once; the layer goes by what it has read.
            if x is not None and name != "filter_copy_s":
                part._parameters[name] = nn.Parameter(fake(x, dtype), x.requires_grad)
        for name, x in part._buffers.items():
            if x is not None:
                part._buffers[name] = fake(x, dtype)


@pytest.mark.parametrize("name", list_models())
def test_models(name: str) -> None:
    """Half precision, as they are run: frames to labels, a step with its state and motion."""
    model = create_model(name).eval()
    example = model.example_inputs(SIZE)
    with FakeTensorMode(), torch.no_grad():
        move(model, torch.float16)
        images = torch.empty(1, *SIZE, 3, dtype=torch.uint8, device="cuda")
        frame = model.preprocess(images).half()
        labels = []
        if isinstance(model, VideoModel):
            logits, state = model.start(frame)
            labels.append(model.labels(logits, SIZE))
            given = [all_fake(x, torch.float16) for x in example[2:]]
            for x in given:
                if isinstance(x, Motion):  # flow and mask keep what they have
                    given = [Motion(x.flow.float(), x.mask, x.residual)]
            logits, state = model.step(frame, state, *given)
            labels.append(model.labels(logits, SIZE))
        else:
            labels.append(model.predict(frame))
        for x in labels:
            assert (x.device.type, x.dtype, x.shape) == ("cuda", torch.uint8, (1, *SIZE))


@pytest.mark.parametrize("name", RECIPES)
def test_losses(name: str) -> None:
    """Of a training step, under autocast as well. (For a gradient autograd asks the driver.)"""
    recipe = RECIPES[name]
    model = tasks.build_model(recipe)
    task = tasks.build_task(recipe, model)
    samples, count = 2, len(recipe.data.before) + 1
    with FakeTensorMode():
        move(task)
        frames = torch.empty(samples, count, *SIZE, 3, dtype=torch.uint8, device="cuda")
        labels = torch.empty(samples, *SIZE, dtype=torch.uint8, device="cuda")
        motions = None
        if recipe.task == "carried":
            stride = model.motion_stride
            cells = (SIZE[0] // stride, SIZE[1] // stride)
            one = Motion(
                torch.empty(samples, 2, *cells, device="cuda"),
                torch.empty(samples, 1, *cells, device="cuda"),
                torch.empty(samples, 3, *SIZE, device="cuda"),
            )
            motions = [one] * count
        for dtype in (torch.float32, torch.float16):
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                loss = task(frames, labels, motions, 0)
            assert loss.device.type == "cuda" and loss.requires_grad


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda x: x + torch.ones(3), RuntimeError),
        (lambda x: x if x.sum() > 0 else -x, DataDependentOutputException),
    ],
    ids=["a tensor on the CPU", "a value for the host"],
)
def test_what_is_wrong_is_found(wrong: Callable[[Tensor], Tensor], error: type) -> None:
    with FakeTensorMode(), pytest.raises(error):
        wrong(torch.empty(3, device="cuda"))
