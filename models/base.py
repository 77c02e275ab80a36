"""What every model offers: preprocessing, logits, labels; and the protocol of video models."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from vsegops import upsample_argmax
from vsegops._checks import check_tensor, error
from vsegops.nn import OperatorModule

from .weights import entries


@dataclass(frozen=True)
class Preprocess:
    """How frames become what a model was trained on.

    Attributes:
        mean, std: of each channel, in the model's order and range.
        value_range: what 0 and 255 become before the mean is subtracted.
        channels: the model's order, `"RGB"` or `"BGR"`.

    Calling it:
        frames: uint8 `[N, H, W, 3]`, RGB. (Of a codec reader's frame: `frame.image.permute(1, 2,
            0)[None]`, which copies nothing.)

        Returns `[N, 3, H, W]` float32, channels_last.

    Example:
        >>> import torch
        >>> from vsegops.models.base import IMAGENET
        >>> IMAGENET(torch.zeros(1, 4, 6, 3, dtype=torch.uint8)).shape
        torch.Size([1, 3, 4, 6])
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    value_range: tuple[float, float] = (0.0, 1.0)
    channels: str = "RGB"

    def __call__(self, frames: Tensor) -> Tensor:
        check_tensor("frames", frames, ("N", "H", "W", 3), dtypes=(torch.uint8,))
        low, high = self.value_range
        mean, std = (frames.new_tensor(x, dtype=torch.float32) for x in (self.mean, self.std))
        if self.channels == "BGR":
            frames = frames.flip(3)
        values = frames.float() * ((high - low) / 255) + low
        return ((values - mean) / std).permute(0, 3, 1, 2)


#: Of torchvision's ImageNet classifiers, and of the segmentation networks that start from them.
IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Model(OperatorModule):
    """A segmentation network.

    Attributes:
        num_classes: channels of the logits.
        preprocess: makes its input of frames.
        align_corners: how its logits are enlarged to the frame's size, as published.
        unused_prefixes: what entries begin with that published files hold and inference never uses.
        separate_files: what the entries of each file begin with, where several are published. Any
            of them loads alone.
    """

    num_classes: int
    preprocess: Preprocess = IMAGENET
    align_corners: bool
    unused_prefixes: tuple[str, ...] = ()
    separate_files: tuple[tuple[str, ...], ...] = ()

    def labels(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits as labels `[N, *size]`, enlarged and decided in one pass (`upsample_argmax`)."""
        height, width = size
        labels = self.run(
            upsample_argmax, logits, (height, width), align_corners=self.align_corners
        )
        return cast(Tensor, labels)

    def example_inputs(self, size: Sequence[int], batch: int = 1) -> tuple[Any, ...]:
        """Random arguments for a call, of the model's dtype and on its device."""
        return (_random(self, batch, 3, *size),)

    def upstream_state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The entries of this model in a published file (see `load_upstream`).

        A model whose files are laid out otherwise than `weights.entries` knows overrides this.
        """
        return entries(checkpoint)


class ImageModel(Model):
    """A network for single images.

    Calling it maps images `[N, 3, H, W]` to logits `[N, num_classes, ceil(H / s), ceil(W / s)]` at
    its own stride s. In training, one with `deep_supervision=True` returns a pair: the logits, and
    a list of auxiliary logits at their own sizes.

    Attributes:
        stride: s.
    """

    stride: int

    def forward(self, images: Tensor) -> Any:
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Labels `[N, H, W]` of images `[N, 3, H, W]`: uint8, or int32 above 256 classes."""
        result = self(images)
        logits = result[0] if isinstance(result, tuple) else result
        return self.labels(logits, images.shape[2:])


class CodedFrame(Protocol):
    """What `Motion.of` reads of a codec reader's frame."""

    @property
    def flow(self) -> Tensor: ...

    @property
    def mask(self) -> Tensor: ...

    @property
    def residual(self) -> Tensor: ...


class Motion(NamedTuple):
    """How frames came from the ones before, as a video codec has it (see `video.Frame`).

    Attributes:
        flow: float32 `[N, 2, h, w]`, backward, at the reader's stride and in units of its cells.
        mask: bool `[N, h, w]`: where there is a flow; elsewhere it is 0.
        residual: float32 `[N, 3, H, W]` in -255..255: the frame minus its prediction.
    """

    flow: Tensor
    mask: Tensor
    residual: Tensor

    @classmethod
    def of(cls, *frames: CodedFrame) -> Motion:
        """The motion of one frame each of N videos."""
        return cls(
            torch.stack([frame.flow for frame in frames]),
            torch.stack([frame.mask for frame in frames]),
            torch.stack([frame.residual for frame in frames]),
        )


class VideoModel(Model):
    """A network for the frames of a video, one after the other.

        logits, state = model.start(frame)
        logits, state = model.step(frame, state, motion)

    `frame` is preprocessed, `[N, 3, H, W]`: one frame each of N videos. `state` is a `NamedTuple`
    of tensors, whose first dimension is N: it can be moved, saved, split and put together. Whether
    `motion` is needed says `motion_stride`.

    Attributes:
        stride: of the logits.
        motion_stride: at which the flow of `motion` is expected (`CodecReader(stride=...)`); None
            where motion is not used.
        schedule: which frames are key frames, as published (see `video.parse_schedule`).
    """

    stride: int
    motion_stride: int | None = None
    schedule: str = "first"

    def start(self, frame: Tensor) -> tuple[Tensor, Any]:
        """The first frame, or any that shall not depend on those before it (a key frame)."""
        raise NotImplementedError

    def step(self, frame: Tensor, state: Any, motion: Motion | None = None) -> tuple[Tensor, Any]:
        """The frame that follows the one that `state` came from."""
        raise NotImplementedError

    def disagreement(self, logits: Tensor, state: Any) -> Tensor:
        """Of a step's results: the share of pixels, a scalar, that it would label otherwise.

        For models that look at the current frame alone as well (the intra prediction).
        """
        raise NotImplementedError(f"{type(self).__name__} makes no intra prediction")

    def forward(
        self, frame: Tensor, state: Any = None, motion: Motion | None = None
    ) -> tuple[Tensor, Any]:
        """`start` without a state, `step` with one: what hooks, `torch.compile` and export see."""
        return self.start(frame) if state is None else self.step(frame, state, motion)

    def example_inputs(self, size: Sequence[int], batch: int = 1) -> tuple[Any, ...]:
        """Random arguments for a step, with the motion if the model uses one."""
        (frame,) = super().example_inputs(size, batch)
        with torch.no_grad():
            _, state = copy.deepcopy(self).eval().to("meta").start(frame.to("meta"))
        state = tree_map(lambda x: _random(self, *x.shape), state)
        if self.motion_stride is None:
            return frame, state
        flow = _random(self, batch, 2, *(-(-length // self.motion_stride) for length in size))
        mask = torch.ones_like(flow[:, 0], dtype=torch.bool)
        return frame, state, Motion(flow, mask, 20 * _random(self, *frame.shape))

    def check_motion(self, frame: Tensor, motion: Motion | None) -> Motion:
        """The motion, where it is there and at the model's stride."""
        if motion is None:
            raise error("motion", "a Motion", motion)
        if self.motion_stride is not None:
            n, _, height, width = frame.shape
            size = [-(-length // self.motion_stride) for length in (height, width)]
            check_tensor("motion.flow", motion.flow, (n, 2, *size), like=frame)
        return motion


def _random(model: Model, *shape: int) -> Tensor:
    like = next(model.parameters())
    return torch.randn(shape, dtype=like.dtype, device=like.device)
