"""What needs a GPU and is no operator: networks, streams through CUDA graphs, training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")
pytest.importorskip("tqdm")

from test_codec import encode  # noqa: E402
from test_segmenter import frames_of  # noqa: E402

from vsegops.models import Motion, VideoModel, VideoSegmenter, create_model  # noqa: E402
from vsegops.models.training import checkpoint, trainer  # noqa: E402
from vsegops.models.training.recipe import changed  # noqa: E402
from vsegops.models.training.recipes import RECIPES  # noqa: E402
from vsegops.models.video import CodecReader  # noqa: E402

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and DEVICE == "cuda", reason="no CUDA device is visible"
)

#: With weights that ship.
STREETS = (
    "sfnet_lite_resnet18_x0_25",
    "gsvnet_sfnet_lite_resnet18_x0_25",
    "twnet_mobilenetv1_x0_5",
)
SIZE = (128, 256)


@pytest.fixture(autouse=True)
def _exact_convolutions() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        yield


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 2e-3), (torch.float16, 3e-2)], ids=["float32", "float16"]
)
@pytest.mark.parametrize("name", STREETS)
def test_a_network_says_what_it_says_on_the_cpu(name: str, dtype: Any, error: float) -> None:
    """In the mean square: where a rounding moves an argmax, GSVNet's edges jump."""
    model = create_model(name, weights="streets").eval()
    there = copy.deepcopy(model).to(DEVICE, dtype, memory_format=torch.channels_last)
    frames, given = torch.stack(frames_of(2, SIZE))[:, None], model.example_inputs(SIZE)[2:]

    def passes(network: Any, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        first, second = (network.preprocess(x.to(device)).to(dtype) for x in frames)
        if not isinstance(network, VideoModel):
            return [network(first)]
        logits, state = network.start(first)
        motion = [x if x is None else Motion(*(y.to(device) for y in x)) for x in given]
        return [logits, network.step(second, state, *motion)[0]]

    with torch.no_grad():
        expected = passes(model, "cpu", torch.float32)
        found = passes(there, DEVICE, dtype)
    for x, truth in zip(found, expected, strict=True):
        difference = (x.float().cpu() - truth).square().mean() / truth.square().mean()
        assert float(difference.sqrt()) < error


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", STREETS)
def test_a_stream_is_what_calls_give(name: str, precision: str, tmp_path: Path) -> None:
    """Through graphs, with copies on streams of their own, twice (graphs are kept)."""
    dtype = getattr(torch, precision)
    path = encode(tmp_path / "clip.mp4", frames=16, size=SIZE, g=6)
    segmenter = VideoSegmenter(
        create_model(name, weights="streets"), device=DEVICE, precision=precision
    )
    model = segmenter.model
    motions = list(CodecReader(path, stride=getattr(model, "motion_stride", None) or 1))
    images = [frame.image.permute(1, 2, 0) for frame in motions]
    expected, keys, state = [], [], None
    with torch.no_grad():
        for result in segmenter(path):
            keys.append(result.is_key)
        assert any(keys) and (all(keys) == (not isinstance(model, VideoModel)))
        for image, key, motion in zip(images, keys, motions, strict=True):
            frame = model.preprocess(image[None].to(DEVICE)).to(dtype)
            if not isinstance(model, VideoModel):
                expected.append(model.predict(frame)[0].cpu())
                continue
            logits, state = (
                model.start(frame)
                if key
                else model.step(frame, state, *_given(model, motion, dtype))
            )
            expected.append(model.labels(logits, frame.shape[2:])[0].cpu())
    for result, labels in zip(segmenter(path), expected, strict=True):
        # Libraries may choose another algorithm within a graph.
        assert (result.labels != labels).float().mean() < 2e-3


def _given(model: VideoModel, coded: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    if model.motion_stride is None:
        return ()
    motion = Motion(*(x.to(DEVICE) for x in Motion.of(coded)))
    return (motion._replace(residual=motion.residual.to(dtype)),)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sfnet_lite_streets", "tmanet_streets"])
def test_training(name: str, precision: str, tmp_path: Path) -> None:
    small = ["steps=3", "batch=2", "data.size=(64, 96)", "data.streets=1", "data.held_out=1"]
    small += ["data.labelled=(4, 5)", "data.root=", "data.share=0.0", "crop=(64, 64)"]
    recipe = changed(RECIPES[name], small)
    recipe = replace(recipe, precision=precision, distances=min(recipe.distances, 2))
    result = trainer.train(recipe, tmp_path, device=DEVICE)
    assert 0 <= result.mean_iou() <= 1
    weights = checkpoint.read(tmp_path / checkpoint.WEIGHTS)["state_dict"]
    assert all(x.isfinite().all() for x in tree_leaves(weights) if isinstance(x, torch.Tensor))
