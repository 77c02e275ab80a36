"""Draw `docs/segmented-street.png`: a generated street, by the small weights that ship."""

from __future__ import annotations

from pathlib import Path

import torch

from vsegops.models import ImageModel, create_model
from vsegops.models.palette import CITYSCAPES
from vsegops.models.training.evaluate import clip_for, step_through
from vsegops.models.training.streets import Streets
from vsegops.models.video.overlay import colour_picture
from vsegops.models.video.pictures import annotate, mosaic
from vsegops.models.video.writer import save_png

DESTINATION = Path(__file__).parents[1] / "docs" / "segmented-street.png"
STREETS = Streets((2_000_004, 2_000_007), labelled=(20,), before=range(11, 0, -1))
#: Each model's frames from a key frame to the one that is shown.
MODELS = {
    "sfnet_lite_resnet18_x0_25": 0,
    "gsvnet_sfnet_lite_resnet18_x0_25": 3,
    "twnet_mobilenetv1_x0_5": 11,
}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for index in range(len(STREETS)):
        sample = STREETS[index]
        row = [sample.frames[-1].clone(), colour_picture(sample.labels, CITYSCAPES)]
        titles = ["a frame", "as it was generated"]
        for name, distance in MODELS.items():
            model = create_model(name, weights="streets").eval()
            if isinstance(model, ImageModel):
                labels = model.predict(model.preprocess(sample.frames[-1:]))[0]
                titles.append(name)
            else:
                labels = step_through(model, clip_for(model, sample), distance)[0]
                titles.append(f"{name.partition('_')[0]}, {distance} frames after a key frame")
            row.append(colour_picture(labels, CITYSCAPES))
        rows.append([annotate(picture, title) for picture, title in zip(row, titles, strict=True)])
    save_png(mosaic(rows), DESTINATION)


if __name__ == "__main__":
    main()
