"""YOLO11n-seg as a teacher of classes: its instances, painted one over the other."""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: The classes of the students, and which of COCO's are each.
CLASSES = ("background", "person", "two-wheeler", "car", "truck")
_COCO = {0: 1, 1: 2, 3: 2, 2: 3, 5: 4, 7: 4}

SIDE = 640  # of its input
_GREY = 114 / 255  # around images that are not square


class Teacher:
    """Maps frames to labels.

    Args:
        path: of the ONNX file.
        confidence: instances with less are not there.
        overlap: of two boxes of a class that overlap by more (IoU), the less confident goes.
    """

    def __init__(
        self, path: str | os.PathLike[str], confidence: float = 0.25, overlap: float = 0.6
    ) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(os.fspath(path))
        self.confidence, self.overlap = confidence, overlap

    def __call__(self, frame: Tensor) -> Tensor:
        """uint8 `[H, W]` of a uint8 frame `[H, W, 3]`."""
        height, width, _ = frame.shape
        scale = SIDE / max(height, width)
        size = (round(height * scale), round(width * scale))
        image = F.interpolate(
            frame.permute(2, 0, 1)[None].float() / 255, size, mode="bilinear", antialias=True
        )
        top, left = ((SIDE - length) // 2 for length in size)
        given = torch.full((1, 3, SIDE, SIDE), _GREY)
        given[:, :, top : top + size[0], left : left + size[1]] = image
        found, prototypes = self._session.run(None, {"images": given.numpy()})
        boxes, classes, masks = self._instances(found[0].T)
        labels = torch.zeros(height, width, dtype=torch.uint8)
        for box, number, mask in zip(boxes, classes, masks, strict=True):
            inside = _mask(mask @ prototypes[0].reshape(32, -1), box)
            inside = inside[top : top + size[0], left : left + size[1]]
            whole = F.interpolate(inside[None, None], (height, width), mode="bilinear")[0, 0]
            labels[whole > 0.5] = _COCO[int(number)]
        return labels

    def _instances(self, rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Boxes, classes and mask coefficients, the least confident first."""
        scores = rows[:, 4:84]
        classes, confidence = scores.argmax(1), scores.max(1)
        kept = (confidence >= self.confidence) & np.isin(classes, list(_COCO))
        rows, classes, confidence = rows[kept], classes[kept], confidence[kept]
        centre, half = rows[:, :2], rows[:, 2:4] / 2
        boxes = np.concatenate([centre - half, centre + half], 1)
        chosen: list[int] = []
        for index in np.argsort(-confidence):
            others = [i for i in chosen if classes[i] == classes[index]]
            if all(_iou(boxes[index], boxes[i]) <= self.overlap for i in others):
                chosen.append(int(index))
        order = chosen[::-1]
        return boxes[order], classes[order], rows[order, 84:]


def _mask(logits: NDArray[np.float32], box: NDArray[np.float32]) -> Tensor:
    """Probabilities `[SIDE, SIDE]` of an instance, 0 outside its box."""
    side = SIDE // 4
    probability = torch.from_numpy(logits).view(1, 1, side, side).sigmoid()
    enlarged = F.interpolate(probability, (SIDE, SIDE), mode="bilinear")[0, 0]
    x0, y0, x1, y1 = (int(np.clip(round(float(x)), 0, SIDE)) for x in box)
    inside = torch.zeros_like(enlarged)
    inside[y0:y1, x0:x1] = enlarged[y0:y1, x0:x1]
    return inside


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    width, height = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    common = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(common / (sum(areas) - common + 1e-9))
