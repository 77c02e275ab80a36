"""The small weights that ship: they load, they are small, and they know a generated street."""

from __future__ import annotations

import pytest

pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")

import torch

from vsegops.models import ImageModel, create_model
from vsegops.models.shipped import FOLDER, SHIPPED
from vsegops.models.training.evaluate import clip_for, step_through
from vsegops.models.training.streets import Streets
from vsegops.nn import ConfusionMatrix

#: What is less than the mean IoU of each, after four frames where it is a network for videos.
LEAST = {
    "sfnet_lite_resnet18_x0_25": 0.4,
    "gsvnet_sfnet_lite_resnet18_x0_25": 0.25,
    "twnet_mobilenetv1_x0_5": 0.4,
}
#: Far from those that were trained on.
SEEDS = (3_000_000, 3_000_001)


@pytest.fixture(scope="module")
def streets() -> Streets:
    return Streets(SEEDS, (128, 256), labelled=(8,), before=(4, 3, 2, 1))


@pytest.mark.parametrize("name", SHIPPED)
def test_they_know_a_street(name: str, streets: Streets) -> None:
    model, matrix = create_model(name, weights="streets").eval(), ConfusionMatrix(19)
    for index in range(len(streets)):
        sample = streets[index]
        if isinstance(model, ImageModel):
            labels = model.predict(model.preprocess(sample.frames[-1:]))
        else:
            labels = step_through(model, clip_for(model, sample), 4)
        matrix.update(labels, sample.labels[None])
    accuracy = matrix.counts.diag().sum() / matrix.counts.sum()
    assert accuracy > 0.8 and matrix.mean_iou() > LEAST[name]


def test_they_are_small() -> None:
    files = {file for files in SHIPPED.values() for file in files}
    assert {path.name for path in FOLDER.iterdir()} == files
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8e6


def test_a_model_that_has_none() -> None:
    with pytest.raises(ValueError, match="'streets' ship for sfnet_lite_resnet18_x0_25, .*not for"):
        create_model("sfnet_df1", weights="streets")
    with pytest.raises(ValueError, match="does not fit"):
        create_model("twnet_mobilenetv1_x0_5", weights="streets", layer=2)
    with pytest.raises(ValueError, match="does not fit"):
        create_model("sfnet_lite_resnet18_x0_25", 5, weights="streets")


def test_gsvnets_network_for_key_frames_is_sfnet_lite() -> None:
    video = create_model("gsvnet_sfnet_lite_resnet18_x0_25", weights="streets")
    image = create_model("sfnet_lite_resnet18_x0_25", weights="streets")
    own = image.state_dict()
    theirs = video.keyframe.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(x, theirs[name]) for name, x in own.items())
