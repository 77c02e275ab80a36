"""What the demo draws: a picture of one frame's prediction, and those of the video of all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .codec import Frame
from .pictures import (
    add_wheel,
    annotate,
    flow_picture,
    image_picture,
    mosaic,
    residual_picture,
    wheel_picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAIN = 4.0  # of residuals, in pictures
VIDEO_LARGEST = 6.0  # pixels per frame at full saturation; one scale for the whole video


def frame_panels(frame: Frame, corrected: Tensor, figure: float | None) -> Tensor:
    """One picture of the video: rebuilt frame, motion, prediction, residual, each at half size.

    Args:
        frame: at stride 1.
        corrected: float32 `[3, H, W]`, prediction plus residual.
        figure: PSNR of the prediction in dB; None on key frames.
    """
    images = torch.cat([corrected, frame.prediction, frame.residual])[None]
    rebuilt, warped, rest = F.avg_pool2d(images, 2)[0].split(3)
    kind = "I" if frame.is_key else "P"
    texts = [f"warped + residual, frame {frame.index} {kind}"]
    if figure is None:
        empty = torch.full((*rebuilt.shape[1:], 3), 128, dtype=torch.uint8)
        pictures = [image_picture(rebuilt), empty, empty, empty]
        texts += ["no motion", "no prediction", "coded whole"]
    else:
        # Blocks are larger than two pixels: taking every other one loses none.
        rows, columns = 2 * rebuilt.shape[1], 2 * rebuilt.shape[2]
        flow, mask = frame.flow[:, :rows:2, :columns:2], frame.mask[:rows:2, :columns:2]
        pictures = [
            image_picture(rebuilt),
            add_wheel(flow_picture(-flow, mask, largest=VIDEO_LARGEST), f"{VIDEO_LARGEST:.0f} px"),
            image_picture(warped),
            residual_picture(rest, gain=GAIN),
        ]
        texts += ["motion vectors", f"warped, {figure:.1f} dB", f"residual x{GAIN:.0f}"]
    panels = [annotate(picture, text) for picture, text in zip(pictures, texts, strict=True)]
    return mosaic([panels[:2], panels[2:]])


def save_picture(frame: Frame, path: Path, *, title: str, still: float, warped: float) -> None:
    """Lay out one P-frame: it, its motion, its prediction; what remains without, with, after it.

    Args:
        frame: at stride 1, with motion.
        path: the image file to write.
        title: of the clip.
        still, warped: luma PSNR in dB of the previous frame as it is, and warped.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert frame.previous is not None
    lengths = frame.flow.norm(dim=0)[frame.mask].sort().values
    largest = max(1.0, lengths[int(0.98 * (len(lengths) - 1))].item()) if len(lengths) else 1.0
    change = frame.image.float() - frame.previous.float()
    panels = [
        ("the frame", image_picture(frame.image)),
        ("motion, from the codec", flow_picture(-frame.flow, frame.mask, largest=largest)),
        ("previous frame, warped", image_picture(frame.prediction)),
        (
            f"without motion: change x{GAIN:.0f}, {still:.1f} dB",
            residual_picture(change, gain=GAIN),
        ),
        (
            f"with motion: residual x{GAIN:.0f}, {warped:.1f} dB",
            residual_picture(frame.residual, gain=GAIN),
        ),
        ("warped + residual: the frame again", image_picture(frame.prediction + frame.residual)),
    ]
    height, width = frame.image.shape[1:]
    wide, tall = 5.2, 5.2 * height / width  # of a panel, in inches; the rest of the sizes as well
    left, gap, head, top = 0.2, 0.16, 0.4, 0.75
    size = (2 * left + 3 * wide + 2 * gap, top + 2 * (tall + head))
    figure = Figure(figsize=size, dpi=110, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(left / size[0], 1 - 0.4 / size[1], title, size=17, weight="bold", va="center")
    figure.text(
        1 - left / size[0],
        1 - 0.4 / size[1],
        "frame = warp(previous, motion) + residual",
        size=14,
        color="0.35",
        ha="right",
        va="center",
    )
    for index, (name, picture) in enumerate(panels):
        row, column = divmod(index, 3)
        x, y = left + column * (wide + gap), size[1] - top - (row + 1) * (tall + head) + head / 2
        box = (x / size[0], y / size[1], wide / size[0], tall / size[1])
        axis = figure.add_axes(box)
        axis.imshow(picture.numpy(), interpolation="antialiased", aspect="auto")
        axis.set_title(name, fontsize=13, loc="left", pad=5)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_color("0.75")
        if index == 1:
            _legend(axis, largest, width / height)
    canvas.print_figure(path)


def _legend(axis: Axes, largest: float, aspect: float) -> None:
    """The colour wheel in the lower right corner, on white."""
    box = axis.inset_axes((0.975 - 0.19, 0.035, 0.19, 0.24 * aspect))
    box.imshow(wheel_picture(240).numpy(), extent=(-1, 1, -1, 1))
    box.set(xlim=(-1.1, 1.1), ylim=(-1.9, 1.1), xticks=[], yticks=[])
    box.spines[:].set_color("0.75")
    text = f"rim: {largest:.1f} px\ngrey: no vector"
    box.text(0, -1.5, text, size=8, ha="center", va="center", linespacing=1.3)
